"""How the service runs, as one frozen dataclass; the command line's options are fields of it."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.core.errors import ConfigError

if TYPE_CHECKING:
    from tumorlens.readers import ReadLimits

_TOKEN_LENGTH = 16  # characters at least; `openssl rand -hex 32` gives 64


@dataclass(frozen=True)
class Settings:
    """What the service listens on, whom it answers, and how much it takes."""

    model: Path = Path("classifier.onnx")
    """An exported classifier: an .onnx file, or a run's folder with one."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine it needs --token-file."""
    port: int = 8000
    """0 takes a free one."""
    workers: int = 1
    """Processes. Each holds the model and shares the cores; one that dies is replaced."""
    token_file: Path | None = None
    """Who may ask: one token a line, at least 16 characters; lines with # are comments."""
    insecure: bool = False
    """Listen beyond this machine without tokens."""
    cors: tuple[str, ...] = ()
    """Origins of other pages that may ask, such as https://viewer.example.org; none where absent."""
    queue: int = 128
    """Requests in work or waiting, in each worker; one more is answered 503 at once."""
    per_client: int | None = None
    """Of them, by one token, or one address where there are no tokens; one more is answered 429."""
    window: float = 0.0
    """Seconds that a request waits for others to be classified with it. While the network is busy the next batch
    gathers anyway, and more gained nothing: docs/performance.md."""
    max_megabytes: int = 64
    """Of one request's body."""
    max_seconds: float = 120.0
    """Of one request, from its header to the end of its answer."""
    quiet: bool = False
    """No line of log for each request."""

    def __post_init__(self) -> None:
        for option, value, least in (("port", self.port, 0), ("workers", self.workers, 1), ("queue", self.queue, 1),
                                     ("max-megabytes", self.max_megabytes, 1)):  # fmt: skip
            if value < least:
                raise ConfigError(f"--{option} {value} is below {least}.", cure=f"Say {least} or more.")
        if self.port > 65535:
            raise ConfigError(f"--port {self.port} is no port.", cure="Say 0 to 65535.")
        if self.per_client is not None and self.per_client < 1:
            raise ConfigError(f"--per-client {self.per_client} is below 1.", cure="Say 1 or more, or leave it out.")
        if not 0 <= self.window <= 1:
            raise ConfigError(f"--window {self.window} is out of range.", cure="Say 0 to 1 seconds, such as 0.002.")
        if not self.max_seconds > 0:
            raise ConfigError(f"--max-seconds {self.max_seconds} is no time.", cure="Say more than 0.")
        if bad := [one for one in self.cors if one == "*" or "://" not in one or one.count("/") != 2]:
            raise ConfigError(
                f"--cors {bad[0]!r} is no origin.", cure="Say scheme, host and port alone: https://viewer.example.org"
            )
        if not self.is_loopback and self.token_file is None and not self.insecure:
            raise ConfigError(
                f"--host {self.host} is open to other machines, and no --token-file says who may ask.",
                cure="Write tokens, one a line (openssl rand -hex 32), and add --token-file FILE; or say --insecure.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def max_bytes(self) -> int:
        """Of one request's body."""
        return self.max_megabytes * 1_000_000

    @property
    def max_held(self) -> int:
        """Bytes of all bodies together that a worker holds; one more is answered 503."""
        return max(4 * self.max_bytes, 256_000_000)

    @property
    def limits(self) -> ReadLimits:
        """What one file may unfold into: tighter than on the command line, as strangers send it."""
        from tumorlens.readers import ReadLimits  # --help must not wait for it

        return ReadLimits(frames=1_000, entries=10_000, bytes=max(self.max_bytes, 128_000_000), ratio_from=16_000_000)

    def tokens(self) -> frozenset[bytes]:
        """SHA-256 of each token, none where no file is named.

        Raises
        ------
        ConfigError
            The file cannot be read, is empty, or holds a token that is too short to be a secret.
        """
        if self.token_file is None:
            return frozenset()
        try:
            lines = self.token_file.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not ASCII"
            raise ConfigError(
                f"--token-file {self.token_file} cannot be read ({why}).", cure="Write one token a line."
            ) from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"--token-file {self.token_file} holds no token.", cure="Write one token a line.")
        for number, token in enumerate(found, 1):
            if len(token) < _TOKEN_LENGTH:  # the token itself stays out of the message, which may be logged
                raise ConfigError(
                    f"--token-file {self.token_file}: token {number} has {len(token)} characters.",
                    cure=f"Use {_TOKEN_LENGTH} or more, such as from openssl rand -hex 32.",
                )
        return frozenset(hashlib.sha256(token.encode()).digest() for token in found)
