"""A Study checks its values when it is made, takes paths and configurations as users have them, and is recorded."""

from __future__ import annotations

import dataclasses
import json
import pydoc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tumorlens import Configuration, Study
from tumorlens.core.errors import ConfigError

MINE = Configuration("mine", ("layer4", "fc"), 1e-3, start="initial")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"protocol": "grouped_cv"},
            "--protocol grouped_cv is not valid.\nChoose from official, twin-free-",
        ),
        ({"device": "gpu"}, "--device gpu is not valid.\nChoose from auto, cpu, cuda, mps, xpu."),
        ({"precision": "fp16"}, "--precision fp16 is not valid.\nChoose from auto, fp32, bf16."),
        ({"convolutions": "winograd"}, "--convolutions winograd is not valid."),
        ({"head_solver": "newton"}, "--head-solver newton is not valid."),
        ({"finetuned_start": "none"}, "--finetuned-start none is not valid."),
        ({"seed": "0"}, 'Invalid value "0" for --seed.\nUse a value of type int.'),
        ({"max_epochs": 2.5}, 'Invalid value "2.5" for --max-epochs.\nUse a value of type int.'),
        ({"group_similarity": "much"}, 'Invalid value "much" for --group-similarity.\nUse a value of type float.'),
        ({"tensorboard": "no"}, "--tensorboard no is not valid."),
        ({"out": 3}, 'Invalid value "3" for --out.\nUse a value of type Path.'),
        ({"data": None}, 'Invalid value "None" for --data'),
        ({"configurations": [3]}, 'Invalid value "[3]" for --configurations'),
        ({"configurations": ()}, "No configuration is named."),
        ({"configurations": ["finetund"]}, "Configuration 'finetund' is unknown."),
        ({"configurations": ["finetuned"]}, "starts from 'initial', which is not trained before it"),
        ({"configurations": ["initial", MINE, dataclasses.replace(MINE, seed=1)]}, "have the same name"),
        ({"config": "absent.toml"}, "--config absent.toml cannot be read"),
        ({"on_epoch": "print"}, "on_epoch is not a function."),
        ({"seed": -1}, "--seed -1 is out of range."),
        ({"max_epochs": 0}, "--max-epochs 0 is below 1."),
        ({"group_similarity": float("nan")}, "--group-similarity nan is out of range."),
        ({"folds": 1}, "--folds 1 with --repeats 1 is not a cross-validation."),
        ({"fold": 1}, "--protocol official has no --fold 1."),
        ({"fold": 11, "protocol": "grouped-cv", "repeats": 2}, "--protocol grouped-cv has no --fold 11.\nUse 1 to 10"),
        ({"split": "x.csv", "protocol": "grouped-cv"}, "both split the data"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Study(**values)
    assert message in str(caught.value)


def test_paths_may_be_text_or_paths(tmp_path: Path) -> None:
    text = Study("a.zip", out="runs/x", cache="~/cache", groups="g.csv", weights="w.pth")
    paths = Study(Path("a.zip"), out=Path("runs/x"), cache=Path("~/cache"), groups=Path("g.csv"), weights=Path("w.pth"))
    assert text == paths
    assert (text.data, text.run.root, text.cache) == ("a.zip", Path("runs/x"), Path.home() / "cache")


def test_numbers_of_numpy_are_recorded_as_numbers() -> None:
    study = Study(seed=np.int64(3), group_similarity=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(study.record()))["seed"] == 3


def test_configurations_may_be_objects_and_are_recorded(tmp_path: Path) -> None:
    study = Study(configurations=["initial", MINE], max_epochs=3, on_epoch=print)  # type: ignore[arg-type]
    assert [c.name for c in study.chosen()] == ["initial", "mine"]
    assert study.chosen()[1] == dataclasses.replace(MINE, max_epochs=3)
    record = json.loads(json.dumps(study.record()))
    assert "on_epoch" not in record
    again = Study.from_record(record | {"unknown": 1}, tmp_path)
    assert again == dataclasses.replace(study, out=tmp_path)
    assert again.chosen() == study.chosen()
    assert eval(repr(again), {"Study": Study, "Configuration": Configuration, "PosixPath": Path}) == again


def test_one_name_is_a_list_of_one() -> None:
    assert Study(configurations="initial").configurations == ("initial",)  # type: ignore[arg-type]


def test_help_describes_every_field() -> None:
    text = pydoc.render_doc(Study, renderer=pydoc.plaintext)
    for field in dataclasses.fields(Study):
        assert f" |  {field.name}\n |      " in text, field.name
    assert "on_epoch" not in repr(Study(on_epoch=print))
