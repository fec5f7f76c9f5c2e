"""Count the kinds of input that once went wrong, and which of them their regression tests show to be right.

    python benchmarks/cases.py [PYTEST ARGUMENT ...]

Runs the tests that carry the marker `case(n)`, n a key of KINDS, and writes benchmarks/results/cases.json, from which
`make figures` takes `cases.kinds`, `cases.fixed` (kinds of which at least one test passes and none fails) and
`cases.tests` (those that were not skipped). Exits with 1 unless every kind is right.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest
from measuring import keep

ROOT = Path(__file__).resolve().parents[1]
#: Each kind in a few words, as found among public reports of similar tools.
KINDS = {
    1: "DICOM slices are neighbours in space, not by instance number",
    2: "frames of a multi-frame DICOM are neighbours in space, not as stored",
    3: "pictures with an EXIF orientation",
    4: "a header that names another modality or body part",
    5: "a checkpoint that is not the one the run recorded",
    6: "a validation folder beside train and test",
    7: "folders that are no classes: system folders, copies, results",
    8: "a class without images in Testing",
    9: "a folder per patient below each class",
    10: "pictures with unusual suffixes or none",
    11: "class names in different Unicode normal forms",
    12: "zip archives with backslashes",
    13: "initial weights with another head or a wrapper, and text files in their place",
    14: "PNG with a large text chunk or colour profile",
    15: "JPEG-LS checked as if it were JPEG",
    16: "JPEG Lossless in DICOM",
    17: "NIfTI volumes of few slices in any axis order",
    18: "NIfTI with a qfac of zero",
    19: "DICOM elements that do not parse but only give hints",
    20: "mosaics, localisers and computed maps",
    21: "transparent pictures, and single bright pixels in deep ones",
    22: "closed standard streams",
    23: "accounts without a home folder",
    24: "stages of a run started from another folder",
    25: "messages of the service on forms, volumes and proxies",
    26: "lookup tables in big-endian DICOM",
}


class Collector:
    """A pytest plugin that notes the tests of each kind, and which tests fail or are skipped."""

    def __init__(self) -> None:
        self.tests: dict[int, set[str]] = defaultdict(set)
        self.failed: set[str] = set()
        self.skipped: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the kinds of each test; one test may belong to several."""
        for item in items:
            for marker in item.iter_markers("case"):
                self.tests[marker.args[0]].add(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that failed or was skipped, in set-up, call or teardown."""
        if not report.passed:
            (self.skipped if report.skipped else self.failed).add(report.nodeid)


def main() -> int:
    """Run the tests and keep the counts; returns the exit code."""
    found = Collector()
    pytest.main(["--rootdir", str(ROOT), "-m", "case", str(ROOT / "tests"), *sys.argv[1:]], plugins=[found])
    if unknown := sorted(set(found.tests) - set(KINDS)):
        sys.exit(f"Unknown kinds {unknown}: add them to KINDS.")
    ran = {n: found.tests[n] - found.skipped for n in KINDS}
    fixed = [n for n in KINDS if ran[n] and not ran[n] & found.failed]
    tests = {test for some in ran.values() for test in some}
    for n in (n for n in KINDS if n not in fixed):
        print(f"{n}: {KINDS[n]}: {'a test fails' if ran[n] else 'no test ran'}")
    figures = {"cases.kinds": len(KINDS), "cases.fixed": len(fixed), "cases.tests": len(tests)}
    kinds = [{"kind": KINDS[n], "tests": len(ran[n]), "fixed": n in fixed} for n in KINDS]
    print(keep("cases", "python benchmarks/cases.py", figures, {"kinds": kinds}))
    return int(len(fixed) < len(KINDS))


if __name__ == "__main__":
    sys.exit(main())
