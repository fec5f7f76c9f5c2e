"""A run folder has a format number: earlier ones are read, newer ones are refused in clear words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorlens.core.errors import RunError
from tumorlens.core.files import write_json
from tumorlens.core.run_folder import FORMAT, Run


def test_current_and_earlier_formats_are_read(tmp_path: Path) -> None:
    for record in ({"a": 1}, {"format": FORMAT, "a": 1}):
        write_json(tmp_path / "study.json", record)
        assert Run(tmp_path).read_study()["a"] == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", {"format": FORMAT + 1, "tumorlens": "9.9"})
    with pytest.raises(RunError, match=r"has format 2, written by tumorlens 9\.9.*up to 1\.\nInstall that version"):
        Run(tmp_path).read_study()


@pytest.mark.parametrize(("name", "out"), [("moved", "moved"), ("moved/fold-2", "moved"), ("moved/final", "moved")])
def test_the_cure_for_a_missing_checkpoint_trains_the_run_where_it_lies(tmp_path: Path, name: str, out: str) -> None:
    run = Run(tmp_path / name)
    run.training("initial").parent.mkdir(parents=True)
    write_json(run.study, {"command": "tumorlens study own --out 'old place/run' --seed 1"})
    write_json(run.training("initial"), {"checkpoint": "a.pth", "checkpoint_sha256": ""})
    with pytest.raises(RunError) as error:
        run.checkpoint("initial")
    assert str(error.value.cure).endswith(f"tumorlens study own --out {tmp_path / out} --seed 1")
