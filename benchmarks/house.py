"""Measure the structure of the code: rooms, import cycles, contracts, statements, private interfaces, parameters.

    python benchmarks/house.py [--tests]

`--tests` also times the whole test suite (as `make test` runs it, set-up apart). Writes benchmarks/results/house.json,
from which `make figures` takes `house.*`, `test.seconds` and `readme.lines`. Needs import-linter and, for `--tests`,
everything that the tests need.

How each figure is counted:

- *rooms*: packages directly below `tumorlens`.
- *cycles*: strongly connected components of more than one module, imports inside functions included, imports for type
  checkers apart; and the same between rooms.
- *statements*: nodes of type `ast.stmt`; docstrings, also those below attributes, apart.
- *private interfaces*: `ctypes`, `llvmlite`, assignments to `__class__`, and names with one leading underscore that the
  package uses but nowhere defines, so that they belong to a library. `os._exit` and the methods of named tuples
  are documented and not counted.
- *parameters*: the most that a public function or method takes, `self` and `cls` apart.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
from measuring import keep

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tumorlens"


def modules() -> dict[Path, ast.Module]:
    """The syntax tree of every module in the wheel."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def statements(tree: ast.Module) -> int:
    """Statements of a module without docstrings."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return sum(
        not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str))
        for n in found
    )


def components(edges: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one node (Tarjan 1972, by reachability: graphs here are small)."""
    reach = {node: _reachable(node, edges) for node in edges}
    found: list[set[str]] = []
    for node in edges:
        circle = {other for other in reach[node] if node in reach.get(other, set())}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for other in edges.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    return seen


def cycles() -> list[set[str]]:
    """Import cycles between modules, and between rooms."""
    graph = grimp.build_graph("tumorlens", exclude_type_checking_imports=True, cache_dir=None)
    edges = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    rooms: dict[str, set[str]] = {}
    for module, imported in edges.items():
        if module.count(".") >= 1:
            room = module.split(".")[1]
            others = {other.split(".")[1] for other in imported if other.count(".") >= 1}
            rooms.setdefault(room, set()).update(others - {room})
    return components(edges) + components(rooms)


def private_interfaces(trees: dict[Path, ast.Module]) -> list[str]:
    """Places where a library's private interface is used, as `file:line name`."""
    defined = {name for tree in trees.values() for name in _defined(tree)}
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in _private(node):
                if name not in defined:
                    found.append(f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)} {name}")
    return found


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def _private(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        public = (
            isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("os", "_exit")
        ) or node.attr == "_replace"
        if re.match(r"_[^_]", node.attr) and not public:
            yield node.attr
        if node.attr == "__class__" and isinstance(node.ctx, ast.Store):
            yield "__class__ ="
    elif isinstance(node, ast.Import | ast.ImportFrom):
        base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            whole = f"{base}.{alias.name}".strip(".")
            top, *inner = whole.split(".")
            hidden = top != "tumorlens" and any(re.match(r"_[^_]", part) for part in inner)
            if hidden or top in ("ctypes", "llvmlite"):
                yield f"import {whole}"


def parameters(trees: dict[Path, ast.Module]) -> tuple[int, str]:
    """The most parameters of a public function, and its name."""
    most = (0, "")
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(a.arg not in ("self", "cls") for a in every)
                most = max(most, (count, f"{path.relative_to(PACKAGE)}: {node.name}"))
    return most


def broken_contracts() -> int:
    """Contracts of import-linter that do not hold."""
    program = Path(sys.executable).with_name("lint-imports")
    shown = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not (counts := re.search(r"Contracts: (\d+) kept, (\d+) broken", shown)):
        sys.exit(f"lint-imports printed no result:\n{shown}")
    return int(counts[2])


def timed_tests() -> float:
    """Wall-clock seconds of the whole suite; exits where it fails."""
    words = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="also time the test suite")
    tests = parser.parse_args().tests
    trees = modules()
    circles, private, most = cycles(), private_interfaces(trees), parameters(trees)
    figures: dict[str, float] = {
        "house.top_level_rooms": sum((one / "__init__.py").exists() for one in PACKAGE.iterdir()),
        "house.import_circles": len(circles),
        "house.contracts_broken": broken_contracts(),
        "house.statements": sum(map(statements, trees.values())),
        "house.private_interfaces": len(private),
        "house.max_parameters": most[0],
        "readme.lines": len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
    }
    detail: dict[str, Any] = {
        "circles": [sorted(circle) for circle in circles], "private": private, "most_parameters": most[1],
        "statements": {
            room: sum(statements(t) for p, t in trees.items() if p.relative_to(PACKAGE).parts[0] == room)
            for room in sorted({p.relative_to(PACKAGE).parts[0] for p in trees})
        },
    }  # fmt: skip
    if tests:
        figures["test.seconds"] = round(timed_tests(), 1)
    words = " ".join(["python benchmarks/house.py", *(["--tests"] if tests else [])])
    path = keep("house", words, figures, detail)
    for name, value in figures.items():
        print(f"{name:26} {value:g}")
    for line in [*map(str, detail["circles"]), *private, detail["most_parameters"]]:
        print(f"  {line}")
    print(path)


if __name__ == "__main__":
    main()
