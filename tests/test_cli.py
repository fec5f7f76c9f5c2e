"""The command line: help, exit codes, what goes to stdout, and what a base installation says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_folder

from tumorlens import auditing
from tumorlens.cli import main
from tumorlens.configurations import read_configurations

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["study", "train", "evaluate", "compare", "report", "data fetch", "data check", "data audit"]
COMMANDS = [*STAGES, "export", "predict", "explain", "serve"]


def run(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom tumorlens.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: tumorlens {command}" in shown
    assert ("--json" in shown) == (command in STAGES or command == "export")
    options = re.findall(r"^│ +(?:\* +)?(?:\S+ )?(--[a-z-]+) +(.*?) *│$", shown, flags=re.M)
    assert options
    for name, text in options:
        assert text or name.startswith("--random"), f"{command} {name} has no help"


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch", "sklearn", "scipy", "matplotlib", "pandas", "onnxruntime", "nibabel", "pydicom"
    before = (
        "import atexit\n"
        f"atexit.register(lambda: print('HEAVY', sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr))"
    )
    for words in (["--help"], ["study", "--help"]):
        found = run(*words, before=before)
        assert found.returncode == 0
        assert "HEAVY []" in found.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["study", "--unknown"], 2),
        (["study", "--seed", "many"], 2),
        (["study", "--device", "tpu"], 2),
        (["staudy"], 2),
        (["evaluate"], 2),
        (["evaluate", "absent"], 1),
        (["compare", "absent"], 1),
        (["report", "absent"], 1),
        (["study", "--seed", "-1"], 1),
        (["study", "--config", "absent.toml"], 1),
        (["study", "--configurations", "finetund"], 1),
        (["data", "check", "absent.zip"], 1),
        (["study", "--data", "absent.zip", "--weights", "absent.pth", "--out", "x"], 1),
    ],
)
def test_exit_codes(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if code == 1:
        assert out == ""
        assert err.splitlines()[-1].startswith("  → ")
    if code == 2:
        assert out == ""
        assert err


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data", train=4, test=2)
    (folder / "Training" / "glioma" / "empty.jpg").write_bytes(b"")
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "cache"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"]["counts"]["Testing"] == {"glioma": 2, "meningioma": 2, "notumor": 2, "pituitary": 2}
    assert found["audit"]["unreadable"][0]["path"] == "Training/glioma/empty.jpg"
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "cache")]) == 0
    assert "empty" in capsys.readouterr().out


def test_a_base_installation_says_which_extra_is_missing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", train=4, test=2)
    # As if torch were not installed: any import of it fails as Python's own does.
    without = (
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())"
    )
    out = str(tmp_path / "run")
    found = run("study", "--data", str(folder), "--weights", "none", "--out", out, before=without)
    assert found.returncode == 1
    assert "tumorlens[study]" in found.stderr
    assert "Traceback" not in found.stderr
    assert run("data", "check", str(folder), "--cache", str(tmp_path / "c"), before=without).returncode == 0


def test_readmes_configuration_file_works(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert block
    (tmp_path / "more.toml").write_text(block[1])
    assert read_configurations(tmp_path / "more.toml")[0].name == "layer4"


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.strip()]
    assert lines[1].startswith("make demo")
    assert lines[2].startswith("make test")


def test_an_audit_looks_at_its_weights_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auditing, "build_index", lambda *_: pytest.fail("indexed"))
    assert main(["data", "audit", "phantom", "--weights", str(tmp_path / "absent.pth"), "--cache", str(tmp_path)]) == 1
    assert "absent.pth is no file" in capsys.readouterr().err
