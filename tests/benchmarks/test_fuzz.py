"""The fuzzer itself: it counts, and the same seed gives the same mutants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np
from input_files import seeds


def test_the_fuzzer_counts_and_is_reproducible(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, fuzz.__file__, "--files", "20", "--formats", "BMP", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(out.read_text())
    counts = result["formats"]["BMP"]
    assert result["files"] == counts["files"] == counts["read"] + counts["unreadable"] == 20
    assert result["crashes"] == result["hangs"] == result["over_memory"] == 0
    assert 0 < counts["peak_bytes"] < 1_000_000_000
    originals = seeds.seeds()["zip"]
    first, again = ([fuzz.mutate(np.random.default_rng(i), originals, "zip") for i in range(5)] for _ in range(2))
    assert first == again
