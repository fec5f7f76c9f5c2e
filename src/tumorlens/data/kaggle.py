"""Download version 1 of the data set with kagglehub: retry, resume, and explain each failure.

kagglehub resumes a partial archive where the server offers ranges, and marks a data set as complete only
after extraction. It does not check that the response to a resumed download is a partial one (206), and keeps an archive
that it cannot extract; so a damaged archive is removed here before the next attempt.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tumorlens.core.errors import FetchError, MissingExtraError
from tumorlens.core.progress import log
from tumorlens.data.datasheets import V1

ATTEMPTS = 6
_BY_HAND = (
    f"Or download the zip in a browser from {V1.url} and name it with --data PATH; --data phantom needs no download."
)
_TOKEN = (
    "Create an API token on https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it (or put kaggle.json "
    f"into ~/.kaggle), and accept the data set's terms if {V1.url} asks for it. "
)


@dataclass(frozen=True)
class _Failure:
    error: FetchError
    again: bool = False
    """Another attempt may succeed."""
    damaged: bool = False
    """What has been downloaded so far must be removed."""


def download_v1(*, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Download and extract version 1 into kagglehub's cache, or find it there.

    A broken transfer is resumed, at most `ATTEMPTS` times in all, after 1, 2, 4, … seconds.

    Parameters
    ----------
    sleep
        Called with the number of seconds to wait.

    Returns
    -------
    Path
        The extracted folder.

    Raises
    ------
    FetchError
        The download failed; the message names the cure.
    MissingExtraError
        kagglehub is not installed.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for `--json`: kagglehub prints a note on newer versions
        try:
            from kagglehub.config import get_kaggle_credentials
            from kagglehub.datasets import dataset_download
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "kagglehub", "study") from None
        for handler in logging.getLogger("kagglehub").handlers:  # bound to stdout if it was imported before
            if type(handler) is logging.StreamHandler:  # not its log file, nor what a program added
                handler.stream = sys.stderr
        try:
            get_kaggle_credentials()
        except (ValueError, OSError) as error:
            raise FetchError(f"Kaggle's credentials cannot be used: {error}.", cure=_TOKEN + _BY_HAND) from None
        attempt = 1
        while True:
            try:
                return Path(dataset_download(V1.kaggle_handle))
            except Exception as error:
                # kagglehub documents no exceptions, and lets those of four libraries through.
                failure = _explain(error, connected_before=attempt > 1)
                if failure.damaged:
                    _remove_partial()
                if attempt == ATTEMPTS or not failure.again:
                    raise failure.error from error
            log.info(f"{failure.error.what} Attempt {attempt + 1} of {ATTEMPTS} follows.")
            sleep(2.0 ** (attempt - 1))
            attempt += 1


def _explain(error: Exception, *, connected_before: bool) -> _Failure:
    """What an exception from kagglehub means for the user, and whether to try again."""
    import requests
    from kagglehub import exceptions as hub
    from urllib3.exceptions import MaxRetryError

    text = " ".join(str(error).split())[:300] or type(error).__name__
    match error:
        case requests.HTTPError(response=requests.Response(status_code=status)):
            return _explain_status(status, text)
        case hub.CredentialError() | hub.UnauthenticatedError():
            return _Failure(FetchError(f"Kaggle's credentials cannot be used: {text}", cure=_TOKEN + _BY_HAND))
        case requests.ConnectionError(args=(MaxRetryError(reason=reason), *_)):
            return _Failure(
                FetchError(
                    f"Kaggle cannot be reached ({reason or text}).",
                    cure=f"Check the network (and HTTPS_PROXY, if one is needed). {_BY_HAND}",
                ),
                again=connected_before,
            )
        case (
            hub.DataCorruptionError() | requests.JSONDecodeError() | zipfile.BadZipFile() | tarfile.TarError()
            | zlib.error() | EOFError()
        ):  # fmt: skip
            return _damaged(text)
        case requests.RequestException() if not isinstance(error, ValueError):  # an invalid URL is one
            cause: object = error
            while isinstance(cause, Exception) and cause.args:
                cause = cause.args[0]  # the innermost one is in plain words
            return _Failure(
                FetchError(
                    f"The download from Kaggle broke off ({cause}).",
                    cure=f"Run the same command again: it resumes where it stopped. {_BY_HAND}",
                ),
                again=True,
            )
        case OSError() if not isinstance(error, requests.RequestException):
            return _Failure(_disk(error, text))
    if type(error) is ValueError:  # "Unsupported archive type."
        return _damaged(text)
    return _Failure(FetchError(f"kagglehub failed: {type(error).__name__}: {text}", cure=_BY_HAND))


def _damaged(text: str) -> _Failure:
    return _Failure(
        FetchError(
            f"What came from Kaggle is damaged or not an archive, and was removed ({text}).",
            cure=f"Try again later, or over another network. {_BY_HAND}",
        ),
        again=True,
        damaged=True,
    )


def _explain_status(status: int, text: str) -> _Failure:
    if status in (401, 403):
        return _Failure(FetchError(f"Kaggle refuses the download (HTTP {status}).", cure=_TOKEN + _BY_HAND))
    if status == 404:
        return _Failure(
            FetchError(
                f"Kaggle does not have {V1.kaggle_handle} (HTTP 404).",
                cure=f"The version may have been withdrawn: look at {V1.url}. {_BY_HAND}",
            )
        )
    busy = status == 429 or status >= 500
    what, cure = ("", "Try again later. ") if busy else (f": {text}", "")
    return _Failure(FetchError(f"Kaggle answers with HTTP {status}{what}.", cure=cure + _BY_HAND), again=busy)


def _disk(error: OSError, text: str) -> FetchError:
    from kagglehub.config import get_cache_folder

    folder = get_cache_folder()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(
            f"The disk is full: the data set does not fit into kagglehub's cache {folder}.",
            cure="Free about 400 MB, or set KAGGLEHUB_CACHE to a folder on another disk, then run the same "
            "command again: the download resumes where it stopped.",
        )
    return FetchError(
        f"kagglehub's cache {folder} cannot be used ({text}).",
        cure="Set KAGGLEHUB_CACHE to a folder that you may write to.",
    )


def _remove_partial() -> None:
    """Remove archive and files of a data set that is not marked complete."""
    from kagglehub.cache import delete_from_cache, get_cached_archive_path
    from kagglehub.handle import parse_dataset_handle

    handle = parse_dataset_handle(V1.kaggle_handle)
    with contextlib.suppress(OSError):  # the failure that led here is the one to report
        delete_from_cache(handle)
        Path(get_cached_archive_path(handle)).unlink(missing_ok=True)
