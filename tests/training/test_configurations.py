"""Configurations from TOML: what is accepted, and a message for everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tumorlens.core.errors import ConfigError
from tumorlens.study.options import Study
from tumorlens.training.architecture import STAGES
from tumorlens.training.configurations import (
    BUILT_IN,
    Configuration,
    check_order,
    read_configurations,
)


def read(tmp_path: Path, text: str) -> tuple[Configuration, ...]:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return read_configurations(path)


def test_the_published_pair() -> None:
    initial, finetuned = Study().chosen()
    assert (initial.learns, initial.optimizer, initial.learning_rate) == (("fc",), "adam", 0.001)
    assert (finetuned.learns, finetuned.learning_rate) == (("layer3", "layer4", "fc"), 0.0001)
    for configuration in (initial, finetuned):
        assert (configuration.batch_size, configuration.max_epochs, configuration.patience) == (32, 60, 5)
        assert configuration.weight_decay == 0
    assert initial.checkpoint == "best_brain_tumor_resnet18.pth"
    assert finetuned.checkpoint == "best_brain_tumor_resnet18_finetuned.pth"
    assert (initial.frozen_prefix, finetuned.frozen_prefix) == ("avgpool", "layer2")


def test_a_third_configuration_is_a_few_lines(tmp_path: Path) -> None:
    text = '[[configuration]]\nname = "layer4"\nlearns = ["fc", "layer4"]\nlearning_rate = 0.0001\nstart = "initial"\n'
    (found,) = read(tmp_path, text)
    assert found.learns == ("layer4", "fc")
    assert found.frozen_prefix == "layer3"
    chosen = Study(config=tmp_path / "c.toml").chosen()
    assert [c.name for c in chosen] == ["initial", "finetuned", "layer4"]


def test_all_and_a_known_name(tmp_path: Path) -> None:
    every, finetuned = read(
        tmp_path,
        '[[configuration]]\nname = "every"\nlearns = ["all"]\nlearning_rate = 1e-4\n'
        '[[configuration]]\nname = "finetuned"\nweight_decay = 0.01\n',
    )
    assert every.learns == STAGES
    assert every.frozen_prefix == "image"
    assert finetuned.weight_decay == 0.01
    assert finetuned.learning_rate == BUILT_IN["finetuned"].learning_rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[configuration]\n", "not valid TOML"),
        ("x = 1\n", r"\[\[configuration\]\] tables"),
        ("[[configuration]]\nlearns = ['fc']\n", "has no name"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\n", "lacks 'learning_rate'"),
        ("[[configuration]]\nname = 'a'\nlearns = ['layer9']\nlearning_rate = 1\n", "unknown one"),
        ("[[configuration]]\nname = 'a'\nlearns = []\nlearning_rate = 1\n", "names no stage"),
        ("[[configuration]]\nname = 'a'\nlearns = 'fc'\nlearning_rate = 1\n", "wrong type"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\nlearning_rate = '1'\n", "wrong type"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\nlearning_rate = nan\n", "not a positive"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\nlearning_rate = 0\n", "not a positive"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\nlearning_rate = 1\nepoch = 3\n", "unknown key 'epoch'"),
        ("[[configuration]]\nname = '../a'\nlearns = ['fc']\nlearning_rate = 1\n", "name must be"),
        ("[[configuration]]\nname = 'finetuned'\nhead_solver = 'lbfgs'\n", "solves the head alone"),
        ("[[configuration]]\nname = 'a'\nlearns = ['fc']\nlearning_rate = 1\noptimizer = 'lion'\n", "'lion'"),
        ("[[configuration]]\nname = 'initial'\n[[configuration]]\nname = 'initial'\n", "twice"),
        ("[[configuration]]\nname = 'finetuned'\nbatch_size = 1\n", "batches of 1"),
        ("[[configuration]]\nname = 'initial'\nseed = 1000000000000000\n", "out of range"),
        ("[[configuration]]\nname = 'initial'\nseed = -1\n", "out of range"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.cure


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_configurations(tmp_path / "absent.toml")


def test_a_start_must_stand_earlier() -> None:
    with pytest.raises(ConfigError, match="starts from 'initial'"):
        check_order((BUILT_IN["finetuned"], BUILT_IN["initial"]))
    refit = replace(BUILT_IN["finetuned"], start="initial_lbfgs_refit")
    with pytest.raises(ConfigError, match="validation images"):
        check_order((BUILT_IN["initial_lbfgs_refit"], refit))
    check_order(Study(configurations=("finetuned",), finetuned_start="imagenet").chosen())


def test_an_option_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[configuration]]\nname = "finetuned"\npatience = 9\n')
    for start in ("initial", "imagenet"):
        finetuned = Study(config=tmp_path / "c.toml", finetuned_start=start).chosen()[1]  # type: ignore[arg-type]
        assert (finetuned.patience, finetuned.start) == (9, start)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        Study(configurations=("initial", "finetund")).chosen()
    with pytest.raises(ConfigError, match="--seed -1"):
        Study(seed=-1)
    with pytest.raises(ConfigError, match="--max-epochs 0"):
        Study(max_epochs=0)
    assert Study(head_solver="lbfgs").chosen()[0].head_solver == "lbfgs"
    assert {c.max_epochs for c in Study(max_epochs=3).chosen()} == {3}
