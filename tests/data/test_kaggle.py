"""Version 1 through kagglehub, with a local server in place of Kaggle."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kaggle_server import CLASSES, Kaggle, dataset_files, everything, serving, zipped

from tumorlens.core.errors import FetchError, MissingExtraError
from tumorlens.data import fetch, kaggle

# kagglehub leaves answers open that it does not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """kagglehub, as installed, talking to a local server, with an empty cache and no credentials."""
    import kagglehub.clients
    from kagglesdk import kaggle_env

    for name in list(os.environ):
        if name.startswith("KAGGLE") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / ".kaggle"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(kagglehub.clients, "CHUNK_SIZE", 1024)  # so that a small file arrives in many pieces
    # For its user agent it looks through the call stack, five times a request: two seconds under pytest.
    monkeypatch.setattr(kagglehub.clients, "search_lib_in_call_stack", lambda _: None)
    with serving(Kaggle(zipped(dataset_files()))) as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        yield server
    with warnings.catch_warnings():  # now, and not in some later test that takes warnings for errors
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def from_kaggle(hub: Kaggle, cache: Path, pauses: list[float]) -> Callable[[], fetch.ImageFolder]:
    return lambda: fetch.fetch("kaggle", cache=cache, download=lambda: kaggle.download_v1(sleep=pauses.append))


def partial_archive(tmp_path: Path) -> Path:
    return tmp_path / "hub/datasets/masoudnickparvar/brain-tumor-mri-dataset/1.archive"


def test_kaggle_version_1_is_downloaded_once(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.newest_client = "99.0"
    folder = from_kaggle()
    assert everything(folder.root) == dataset_files()
    assert folder.classes == CLASSES
    assert folder.testing == folder.root / "Testing"
    assert folder.root.is_relative_to(tmp_path / "hub")
    assert "version 1" in folder.source
    body = hub.seen[0].body
    assert body["datasetVersionNumber"] == 1
    assert (body["ownerSlug"], body["datasetSlug"]) == ("masoudnickparvar", "brain-tumor-mri-dataset")
    asked = len(hub.seen)
    assert from_kaggle() == folder
    assert len(hub.seen) == asked, "the second time comes from the cache"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("first", ["", "import kagglehub;"])
def test_stdout_stays_clean_in_a_fresh_process(hub: Kaggle, first: str) -> None:
    """kagglehub binds its log to stdout on import, and prints a note on newer versions to logged-in users."""
    hub.newest_client = "99.0"
    program = (
        f"import sys; {first} from kagglesdk import kaggle_env as k;"
        "k._env_to_endpoint[k.KaggleEnv.PROD] = sys.argv[1];"
        "from tumorlens.data.kaggle import download_v1; download_v1()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, hub.url],
        capture_output=True, text=True, env={**os.environ, "KAGGLE_API_TOKEN": "secret-token"}, check=True,
    )  # fmt: skip
    assert done.stdout == ""
    assert "99.0" in done.stderr
    assert "secret-token" not in done.stderr
    assert hub.seen[0].authorization == "Bearer secret-token"


def test_a_broken_transfer_resumes(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, pauses: list[float]
) -> None:
    hub.breaks = [5000, None, 2000]
    assert everything(from_kaggle().root) == dataset_files()
    assert hub.transfers() == [None, None, "bytes=4096-", None, "bytes=5120-"]
    assert pauses == [1, 2]


def test_a_transfer_resumes_in_a_later_run(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, tmp_path: Path
) -> None:
    hub.breaks = [5000] + [None, 0] * (kaggle.ATTEMPTS - 1)
    with pytest.raises(FetchError, match=r"broke off \(Connection broken: IncompleteRead") as error:
        from_kaggle()
    assert "resumes where it stopped" in error.value.cure
    assert "--data PATH" in error.value.cure
    assert not (tmp_path / "hub/datasets/masoudnickparvar/brain-tumor-mri-dataset/versions").exists()
    assert partial_archive(tmp_path).stat().st_size == 4096
    hub.seen.clear()
    assert everything(from_kaggle().root) == dataset_files()
    assert hub.transfers() == [None, "bytes=4096-"]


def test_a_broken_transfer_restarts_where_the_server_has_no_ranges(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle
) -> None:
    hub.ranges, hub.breaks = "not offered", [5000]
    assert everything(from_kaggle().root) == dataset_files()
    assert hub.transfers() == [None, None]


@pytest.mark.parametrize("checksum", ["right", "none"])
def test_a_server_that_ignores_the_range_does_no_harm(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, checksum: str
) -> None:
    hub.ranges, hub.checksum, hub.breaks = "ignored", checksum, [5000]
    assert everything(from_kaggle().root) == dataset_files()


@pytest.mark.parametrize("checksum", ["right", "none"])
@pytest.mark.parametrize("size", ["longer", "as long"])
def test_a_wrong_partial_archive_is_never_taken_for_whole(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, tmp_path: Path, checksum: str, size: str
) -> None:
    """kagglehub takes a file of the right length for complete, and appends an error page to a longer one."""
    hub.checksum = checksum
    partial_archive(tmp_path).parent.mkdir(parents=True)
    partial_archive(tmp_path).write_bytes(b"x" * (len(hub.archive) + 10 * (size == "longer")))
    assert everything(from_kaggle().root) == dataset_files()


def test_a_wrong_checksum_ends_after_bounded_attempts(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, pauses: list[float], tmp_path: Path
) -> None:
    hub.checksum = "wrong"
    with pytest.raises(FetchError, match="damaged") as error:
        from_kaggle()
    assert "--data PATH" in error.value.cure
    assert len(hub.transfers()) == kaggle.ATTEMPTS == 6
    assert pauses == [1, 2, 4, 8, 16]
    assert not partial_archive(tmp_path).exists()


@pytest.mark.parametrize("what", ["a page", "a cut zip", "a bad crc"])
def test_what_is_no_whole_zip_is_refused_and_removed(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, tmp_path: Path, what: str
) -> None:
    good = hub.archive
    place = good.index(b"Training/glioma/Tr_0.jpg") + 200
    hub.archive = {
        "a page": b"<html>Log in to the hotel's network</html>",
        "a cut zip": good[:-60],
        "a bad crc": good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :],
    }[what]
    with pytest.raises(FetchError, match="damaged or not an archive"):
        from_kaggle()
    assert not partial_archive(tmp_path).exists()
    hub.archive = good
    assert everything(from_kaggle().root) == dataset_files(), "nothing stands in the way of the next run"


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_says_how_to_log_in(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, status: int, pauses: list[float]
) -> None:
    hub.statuses = [status] * 9
    with pytest.raises(FetchError, match=f"HTTP {status}") as error:
        from_kaggle()
    for word in ("KAGGLE_API_TOKEN", "kaggle.json", "terms", "--data PATH", "kaggle.com/datasets/masoudnickparvar"):
        assert word in error.value.cure
    assert len(hub.seen) == 1
    assert not pauses


def test_404_is_final(from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle) -> None:
    hub.statuses = [404] * 9
    with pytest.raises(FetchError, match=r"does not have .*versions/1.*404") as error:
        from_kaggle()
    assert "--data phantom" in error.value.cure
    assert len(hub.seen) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(
    from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle, status: int, pauses: list[float]
) -> None:
    hub.statuses = [status, status]
    assert everything(from_kaggle().root) == dataset_files()
    assert pauses == [1, 2]
    hub.statuses = [status] * 9


def test_a_server_that_stays_broken_is_given_up(from_kaggle: Callable[[], fetch.ImageFolder], hub: Kaggle) -> None:
    hub.statuses = [500] * 9
    with pytest.raises(FetchError, match="HTTP 500"):
        from_kaggle()
    assert len(hub.seen) == kaggle.ATTEMPTS


def test_no_network(
    from_kaggle: Callable[[], fetch.ImageFolder], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    from kagglesdk import kaggle_env

    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, url)
        with pytest.raises(FetchError, match="cannot be reached") as error:
            from_kaggle()
    assert "--data PATH" in error.value.cure
    assert "--data phantom" in error.value.cure
    assert not pauses, "waiting does not bring a network"


def test_damaged_credentials(from_kaggle: Callable[[], fetch.ImageFolder], tmp_path: Path, hub: Kaggle) -> None:
    (tmp_path / "home/.kaggle").mkdir(parents=True)
    (tmp_path / "home/.kaggle/kaggle.json").write_text("{")
    with pytest.raises(FetchError, match=r"credentials cannot be used.*kaggle\.json"):
        from_kaggle()
    assert not hub.seen


def test_a_full_disk(
    from_kaggle: Callable[[], fetch.ImageFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import kagglehub.clients

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kagglehub.clients, "_download_file", full)
    with pytest.raises(FetchError, match="disk is full") as error:
        from_kaggle()
    assert "KAGGLEHUB_CACHE" in error.value.cure


def test_an_unusable_hub_cache(
    from_kaggle: Callable[[], fetch.ImageFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match=r"cache .*file cannot be used") as error:
        from_kaggle()
    assert "KAGGLEHUB_CACHE" in error.value.cure


def test_a_failure_nobody_foresaw_is_a_message(
    from_kaggle: Callable[[], fetch.ImageFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "NOWHERE")
    with pytest.raises(FetchError, match="NOWHERE"):
        from_kaggle()


def test_ctrl_c_passes_through(from_kaggle: Callable[[], fetch.ImageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    import kagglehub.clients

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kagglehub.clients, "_download_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_kaggle()


def test_kagglehub_not_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "kagglehub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MissingExtraError) as error:
        fetch.fetch("kaggle", cache=cache)
    assert "tumorlens[study]" in error.value.cure


@pytest.mark.case(23)
def test_without_a_home_folder_the_error_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in [n for n in sys.modules if n.split(".")[0] == "kagglehub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(FetchError, match="needs a home folder") as error:
        fetch.fetch("kaggle", cache=cache)
    assert error.value.cure.startswith("Set HOME to a folder")
