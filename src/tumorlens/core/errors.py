"""The exceptions of the package. The command line prints the message and exits with 1.

    TumorlensError
    ├── DataError           a data set, archive, index or split file that cannot be used
    │   └── ImageError      one image file that cannot be used
    ├── FetchError          a data set or weights that could not be downloaded
    ├── WeightsError        a weights file that is not a ResNet18 state dict
    ├── ConfigError         an option or configuration file with an invalid value
    ├── RunError            a run folder that cannot be written, is incomplete or belongs to another study
    └── MissingExtraError   an optional dependency that is not installed

A message states what happened, where, and the value; `cure` states what to do about it.
"""


class TumorlensError(Exception):
    """Base class of all errors that a user can cause and resolve.

    Parameters
    ----------
    what
        What happened, where, and the offending value.
    cure
        What the user can do; printed on a separate line.
    """

    def __init__(self, what: str, *, cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n{self.cure}" if self.cure else self.what


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with advice on how to resume; the command line exits with 130."""

    def __init__(self, more: str | None = None, advice: str = "") -> None:
        super().__init__()
        self.more = more
        """Options to append to the command so that it resumes; None if it cannot resume."""
        self.advice = advice


class DataError(TumorlensError):
    """A data set, archive, index or split file that cannot be used."""


class ImageError(DataError):
    """One image file that cannot be used."""


class FetchError(TumorlensError):
    """A data set or weights that could not be downloaded."""


class WeightsError(TumorlensError):
    """A weights file that is not a ResNet18 state dict."""


class ConfigError(TumorlensError):
    """An option or configuration file with an invalid value."""


class RunError(TumorlensError):
    """A run folder that cannot be written, is incomplete or belongs to another study."""


class MissingExtraError(TumorlensError):
    """An optional dependency that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"This needs the Python package {module!r}, which is not installed.",
            cure=f"Install tumorlens[{extra}]: pip install '.[{extra}]' in the source folder.",
        )
