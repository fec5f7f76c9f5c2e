"""The command line: help, exit codes, what goes to stdout, and what a base installation says."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_folder

from tumorlens.cli import inference as cli_use
from tumorlens.cli.app import main
from tumorlens.core.files import cache_dir
from tumorlens.inference import volumes
from tumorlens.inference.records import header
from tumorlens.readers import ReadLimits
from tumorlens.readers.pixels import MAX_PIXELS
from tumorlens.study.options import Study
from tumorlens.training.configurations import BUILT_IN, read_configurations

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["study", "train", "evaluate", "compare", "report", "data fetch", "data check", "data audit"]
COMMANDS = [*STAGES, "export", "predict", "explain", "serve"]


def run(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom tumorlens.cli.app import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


LEAVING = """
import atexit, sys, threading, time
from tumorlens import __main__ as program
{before}
atexit.register(print, "called at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
program.run()
"""


@pytest.mark.parametrize(
    ("before", "code", "collected"),
    [
        ("program.main = lambda: print('x' * 200_000) or 3", 3, True),
        ("sys.modules['torch'] = sys\nprogram.main = lambda: print('x' * 200_000) or 3", 3, False),
        ("sys.modules['torch'] = sys\ndef main(): print('x' * 200_000); 1 / 0\nprogram.main = main", 1, True),
    ],
)
def test_a_process_ends_with_all_that_it_printed(before: str, code: int, collected: bool) -> None:
    """Threads and exit functions have their turn even where PyTorch's objects are left to the system."""
    kept = "class Kept:\n    def __del__(self): print('taken down')\nkept = Kept()\n"
    found = subprocess.run(
        [sys.executable, "-c", LEAVING.format(before=kept + before)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == code, found.stderr
    assert found.stdout.startswith("x" * 200_000)
    assert "a thread\ncalled at exit\n" in found.stdout
    assert ("taken down" in found.stdout) == collected
    assert ("ZeroDivisionError" in found.stderr) == (code == 1)


@pytest.mark.parametrize("torch", ["", "sys.modules['torch'] = sys"])
@pytest.mark.parametrize("n", [5, 200_000])  # less and more than is written at once
def test_a_closed_pipe_gives_141(torch: str, n: int, tmp_path: Path) -> None:
    code = f"import sys\nfrom tumorlens import __main__ as program\nfrom tumorlens.cli import app as cli\n{torch}\n" + (
        f"cli._run = lambda: print('x' * {n})\nprogram.run()"
    )
    read, write = os.pipe()
    os.close(read)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with os.fdopen(write) as pipe, (tmp_path / "err").open("w+") as err:
        done = subprocess.run([sys.executable, "-c", code], stdout=pipe, stderr=err, env=environment, timeout=60)
        err.seek(0)
        assert (done.returncode, err.read()) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_borne(closed: str) -> None:
    code = "import sys\nfrom tumorlens import __main__ as program\nsys.modules['torch'] = sys\n" + (
        "program.main = lambda: 3\nprogram.run()"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


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
    heavy = "torch", "numpy", "PIL", "sklearn", "scipy", "matplotlib", "pandas", "onnxruntime", "nibabel", "pydicom"
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


def plain(text: str) -> str:
    """Words alone, however they are wrapped and marked."""
    return " ".join(text.replace("`", "").split())


def test_the_rule_for_volumes_is_in_the_documents_and_help_names_the_place() -> None:
    help_text, using = inspect.getdoc(cli_use.predict) or "", (ROOT / "docs" / "using.md").read_text()
    rule = (volumes.__doc__ or "").split("\n\n", 1)[1].strip()
    assert f"of at least {volumes.PROBABILITY}\n" in rule
    assert f"at least {volumes.NEIGHBOURS} neighbouring slices" in rule
    assert rule in using
    assert 'docs/using.md, "Volume-level results"' in plain(help_text)
    assert "### Volume-level results\n" in using


def test_help_into_a_pipe_that_closes_gives_141() -> None:
    found = subprocess.run(
        f"{sys.executable} -m tumorlens --help | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] in ("0", "141"), found.stderr
    assert not found.stderr


def test_readmes_commands_name_one_run() -> None:
    runs = re.findall(r"runs/[a-z0-9-]+", (ROOT / "README.md").read_text())
    assert len(runs) > 5
    assert set(runs) == {"runs/mine"}


def test_using_tells_every_column_and_limit() -> None:
    text = (ROOT / "docs" / "using.md").read_text()
    for column in header("csv", ()).strip().split(","):
        assert f"| `{column}` |" in text
    limits = ReadLimits()
    for most in (limits.pixels, limits.frames, limits.entries, limits.bytes, limits.ratio_from):
        assert f"{most:,}" in text
    assert f"at most {limits.ratio:g} times" in text
    assert f"{MAX_PIXELS:,} pixels" in text


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("study", [*BUILT_IN, "plus protocol, folds, groups and similarity", "slices that --data phantom generates"]),
        ("train", ["or folds (study only)", *["grouped-cv (study only)"] * 3]),
        (
            "predict",
            ["classifier.onnx is preferred to classifier-int8.onnx", "the same inputs, model, plane and coverage"],
        ),
        ("explain", ["classifier.onnx is preferred to classifier-int8.onnx"]),
    ],
)
def test_help_tells(
    command: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    shown = plain(capsys.readouterr().out.replace("│", ""))
    for words in expected:
        assert shown.count(words) >= expected.count(words), words


def test_a_runs_name_tells_what_is_not_the_default() -> None:
    cv = Study("a.zip", seed=2, protocol="grouped-cv", folds=4, groups=Path("p.csv"), group_similarity=0.95)
    assert str(cv.run.root) == "runs/a-seed2-grouped-cv-4-p-0.95"


def test_a_cross_validations_folder_names_its_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold in ("fold-1", "fold-2", "fold-10"):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / "study.json").write_text("{}")
    (tmp_path / "cv.json").write_text("{}")
    for command in ("evaluate", "compare", "report", "export"):
        assert main([command, str(tmp_path)]) == 1
        shown = capsys.readouterr().err
        assert "study.json is missing" in shown
        assert f"holds a cross-validation. Give one of its folds, such as {tmp_path / 'fold-1'}." in shown


def test_the_cache_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == Path("/home/x/.cache/tumorlens")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/tumorlens")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path("/home/x/Library/Caches/tumorlens")
    monkeypatch.setenv("TUMORLENS_CACHE", "/mine")
    assert cache_dir() == Path("/mine")
