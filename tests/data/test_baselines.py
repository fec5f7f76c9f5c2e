"""Baselines that see no anatomy, and their file."""

from __future__ import annotations

from leaky_folder import index as index  # a fixture

from tumorlens.data.baselines import baselines, read_baselines, write_baselines
from tumorlens.data.protocols import SplitOptions, assign


def test_baselines_find_copies_and_mirror_images(index, tmp_path) -> None:
    found = assign(index, SplitOptions("official"))
    lines = baselines(found.split.rows, index.thumbnails)
    predicted = {line[0]: line for line in lines}
    assert len(lines) == 24
    assert predicted["Testing/one/000.png"][2:4] == ("one", "one")  # a copy
    assert predicted["Testing/two/002.png"][3] == "two"  # its mirror image is in Training
    write_baselines(tmp_path / "baselines.csv", lines)
    assert read_baselines(tmp_path / "baselines.csv") == {line[0]: line[2:] for line in lines}
