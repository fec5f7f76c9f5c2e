"""The package can be imported, and prints its help, without torch and without the modules and names of POSIX."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tumorlens

WITHOUT_POSIX = """
import builtins, os, signal, sys

HIDDEN = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "torch", "torchvision"}
real_import = builtins.__import__

def import_(name, globals=None, locals=None, fromlist=(), level=0):
    who = (globals or {}).get("__name__", "")
    if not level and name.split(".")[0] in HIDDEN and who.split(".")[0] == "tumorlens":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = import_
for name in ("fork", "forkpty", "preadv", "pread", "mkfifo", "sched_getaffinity", "getuid", "killpg", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "SIGPIPE"):
    if hasattr(signal, name):
        delattr(signal, name)
"""
IMPORT_ALL = """
import importlib, pkgutil, tumorlens

for module in pkgutil.walk_packages(tumorlens.__path__, "tumorlens."):
    if module.name == "tumorlens.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""
#: Packages of which some modules need torch.
NEED_TORCH = ("tumorlens.training.", "tumorlens.export.", "tumorlens.study.")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_POSIX + code], capture_output=True, text=True)


def test_modules_import() -> None:
    done = run(IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")
    failed = dict(line.split() for line in done.stdout.splitlines())
    assert set(failed.values()) == {"torch"}, failed
    assert all(name.startswith(NEED_TORCH) for name in failed), failed


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_command_starts(argument: str) -> None:
    done = run(f"import sys; sys.argv[1:] = [{argument!r}]; from tumorlens.__main__ import run; run()")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"--help": "predict", "--version": tumorlens.__version__}[argument] in done.stdout


def test_peak_memory_is_unknown_without_its_module() -> None:
    done = run("from tumorlens.core.environment import peak_memory_gb; print(peak_memory_gb())")
    assert done.stdout == "None\n", done.stderr


def test_files_can_be_locked() -> None:
    code = """
import pathlib, tempfile
from tumorlens.core.files import locked
with tempfile.TemporaryDirectory() as folder, locked(pathlib.Path(folder) / "new" / ".lock"):
    print("locked")
"""
    done = run(code)
    assert done.stdout == "locked\n", done.stderr
