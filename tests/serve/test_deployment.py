"""What Dockerfile, compose file and the service's lock promise, read from them."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "Dockerfile").exists(), reason="the source archive has no Dockerfile")


def locked(name):
    """Package → versions with their hashes."""
    found = {}
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text())
    for entry in entries:
        if match := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", entry):
            hashes = frozenset(re.findall(r"--hash=(\S+)", entry))
            found.setdefault(match[1], {})[match[2]] = hashes
    return found


@pytest.fixture(scope="module")
def steps():
    """Instructions of the Dockerfile in order, with continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_services_lock_is_a_part_of_the_lock():
    part, whole = locked("requirements-serve.lock"), locked("requirements.lock")
    assert part
    for name, versions in part.items():
        for version, hashes in versions.items():
            assert hashes, f"{name} {version} has no hash"
            assert whole[name][version] == hashes
    assert not {"torch", "torchvision", "scipy", "scikit-learn"} & set(part)


def test_the_services_lock_holds_all_that_serving_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    names = {re.split(r"[<>=!~\[; ]", one)[0] for one in wanted}
    assert names <= set(locked("requirements-serve.lock"))


def test_the_image_runs_without_rights(steps):
    last = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]
    words = [word for word, _ in last]
    user = dict(last)["USER"]
    assert user.isdecimal()
    assert int(user) > 0
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    assert "HEALTHCHECK" in words
    assert "ADD" not in words
    assert json.loads(dict(last)["ENTRYPOINT"])[-1] == "serve"
    assert "--token-file" in json.loads(dict(last)["CMD"])
    assert "--insecure" not in dict(last)["CMD"]


def test_the_image_installs_by_hash_alone(steps):
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest and "--no-deps" in rest for rest in installs)


def test_what_is_copied_is_there_and_not_ignored(steps):
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [rest.split()[0] for word, rest in steps if word == "COPY" and not rest.startswith("--from")]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)


def test_the_compose_file_takes_rights_away(steps):
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["tumorlens"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (model,) = service["volumes"]
    # The short form would take a path that does not begin with ./ or / for the name of a volume.
    assert (model["type"], model["read_only"], model["bind"]) == ("bind", True, {"create_host_path": False})
    assert model["source"].startswith("${MODEL:?")
    command = json.loads(dict(steps)["CMD"])
    assert command[command.index("--model") + 1] == model["target"]
    assert int(service["stop_grace_period"].rstrip("s")) > 10
