"""What can go wrong, as one tree. The command line prints the message and exits with 1.

    TumorlensError
    ├── DataError           a data set, archive, index or split file that cannot be used
    │   └── ImageError      one image file that cannot be used
    ├── FetchError          a data set or weights that could not be downloaded
    ├── WeightsError        a weights file with wrong content
    ├── ConfigError         an option or configuration file with a wrong value
    ├── RunError            a run's folder: unwritable, full, unfinished, or another study's
    └── MissingExtraError   a library of an extra that is not installed

A message says what is wrong, where, with which value; `cure` says what to do about it.
"""


class TumorlensError(Exception):
    """Base of every error that a user can cause and cure.

    Parameters
    ----------
    what
        What is wrong, where, and the offending value.
    cure
        What the user can do; printed on a line of its own.
    """

    def __init__(self, what: str, *, cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n{self.cure}" if self.cure else self.what


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what is to be said of going on; the command line exits with 130."""

    def __init__(self, more: str | None = None, advice: str = "") -> None:
        super().__init__()
        self.more = more
        """Words that make the same command go on; None where it cannot."""
        self.advice = advice


class DataError(TumorlensError):
    """A data set, archive, index or split file that cannot be used."""


class ImageError(DataError):
    """One image file that cannot be used."""


class FetchError(TumorlensError):
    """A data set or weights that could not be downloaded."""


class WeightsError(TumorlensError):
    """A weights file with wrong content."""


class ConfigError(TumorlensError):
    """An option or configuration file with a wrong value."""


class RunError(TumorlensError):
    """A run's folder that cannot be written or does not hold what is needed."""


class MissingExtraError(TumorlensError):
    """A library that belongs to an extra which is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"This needs the Python package {module!r}, which is not installed.",
            cure=f"Install tumorlens[{extra}], which brings it: pip install '.[{extra}]' in the source's folder.",
        )
