"""How many violations axe finds in the page: every state, in light and dark, wide and narrow.

    python benchmarks/page.py

Needs a chromium on the PATH. Writes benchmarks/results/page.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from measuring import keep

STATES = Path(__file__).resolve().parents[1] / "tests" / "support" / "page_states.py"


def main() -> None:
    """Count and write."""
    found = json.loads(subprocess.run([sys.executable, STATES], check=True, stdout=subprocess.PIPE).stdout)
    states = found["states"]
    violations = sum(len(one) for one in states.values())
    detail = {
        "browser": f"Chromium {found['browser']}", "axe": found["axe"], "states": len(states),
        "violations": {state: one for state, one in states.items() if one},
        "packages": {name: version(name) for name in ("playwright", "axe-playwright-python")},
    }  # fmt: skip
    path = keep("page", "python benchmarks/page.py", {"page.axe_violations": violations}, detail)
    print(json.dumps({"page.axe_violations": violations, "states": len(states), "file": path.name}))


if __name__ == "__main__":
    main()
