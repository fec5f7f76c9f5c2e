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
        except RuntimeError:  # it looks for the home folder when it is imported
            raise FetchError(
                "kagglehub needs a home folder, and there is none (HOME is not set).",
                cure="Set HOME to a folder that you may write to. " + _BY_HAND,
            ) from None
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
                explained, again = _explain(error, connected_before=attempt > 1)
                if attempt == ATTEMPTS or not again:
                    raise explained from error
            log.info(f"{explained.what} Attempt {attempt + 1} of {ATTEMPTS} follows.")
            sleep(2.0 ** (attempt - 1))
            attempt += 1


def _explain(error: Exception, *, connected_before: bool) -> tuple[FetchError, bool]:
    """What an exception from kagglehub means for the user, and whether another attempt may succeed.

    A damaged download is removed.
    """
    import requests
    from kagglehub import exceptions as hub
    from kagglehub.config import get_cache_folder
    from urllib3.exceptions import MaxRetryError

    text = " ".join(str(error).split())[:300] or type(error).__name__
    what, cure, again = f"kagglehub failed: {type(error).__name__}: {text}", "", False
    match error:
        case requests.HTTPError(response=requests.Response(status_code=401 | 403 as status)):
            what, cure = f"Kaggle refuses the download (HTTP {status}).", _TOKEN
        case requests.HTTPError(response=requests.Response(status_code=404)):
            what = f"Kaggle does not have {V1.kaggle_handle} (HTTP 404)."
            cure = f"The version may have been withdrawn: look at {V1.url}. "
        case requests.HTTPError(response=requests.Response(status_code=status)):
            again = status == 429 or status >= 500
            what = f"Kaggle answers with HTTP {status}" + ("." if again else f": {text}.")
            cure = "Try again later. " if again else ""
        case hub.CredentialError() | hub.UnauthenticatedError():
            what, cure = f"Kaggle's credentials cannot be used: {text}", _TOKEN
        case requests.ConnectionError(args=(MaxRetryError(reason=reason), *_)):
            what, again = f"Kaggle cannot be reached ({reason or text}).", connected_before
            cure = "Check the network (and HTTPS_PROXY, if one is needed). "
        case (
            hub.DataCorruptionError() | requests.JSONDecodeError() | zipfile.BadZipFile() | tarfile.TarError()
            | zlib.error() | EOFError()
        ) | ValueError(args=("Unsupported archive type.",)):  # fmt: skip
            _remove_partial()
            what, again = f"What came from Kaggle is damaged or not an archive, and was removed ({text}).", True
            cure = "Try again later, or over another network. "
        case requests.RequestException() if not isinstance(error, ValueError):  # an invalid URL is one
            cause: object = error
            while isinstance(cause, Exception) and cause.args:
                cause = cause.args[0]  # the innermost one is in plain words
            what, again = f"The download from Kaggle broke off ({cause}).", True
            cure = "Run the same command again: it resumes where it stopped. "
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return FetchError(
                f"The disk is full: the data set does not fit into kagglehub's cache {get_cache_folder()}.",
                cure="Free about 400 MB, or set KAGGLEHUB_CACHE to a folder on another disk, then run the same "
                "command again: the download resumes where it stopped.",
            ), False
        case OSError() if not isinstance(error, requests.RequestException):
            return FetchError(
                f"kagglehub's cache {get_cache_folder()} cannot be used ({text}).",
                cure="Set KAGGLEHUB_CACHE to a folder that you may write to.",
            ), False
    return FetchError(what, cure=cure + _BY_HAND), again


def _remove_partial() -> None:
    """Remove archive and files of a data set that is not marked complete."""
    from kagglehub.cache import delete_from_cache, get_cached_archive_path
    from kagglehub.handle import parse_dataset_handle

    handle = parse_dataset_handle(V1.kaggle_handle)
    with contextlib.suppress(OSError):  # the failure that led here is the one to report
        delete_from_cache(handle)
        Path(get_cached_archive_path(handle)).unlink(missing_ok=True)
