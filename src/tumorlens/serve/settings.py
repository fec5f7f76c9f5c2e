"""Settings of the service as one frozen dataclass; its fields are the options of `tumorlens serve`."""

from __future__ import annotations

import hashlib
import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.core.errors import ConfigError

if TYPE_CHECKING:
    from tumorlens.readers import ReadLimits

_TOKEN_LENGTH = 16  # characters at least; `openssl rand -hex 32` gives 64


@dataclass(frozen=True)
class Settings:
    """Where the service listens, who may use it, and its limits."""

    model: Path = Path("classifier.onnx")
    """An exported classifier: an .onnx file, or a run folder that contains one."""
    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs --token-file."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""
    workers: int = 1
    """Worker processes, each with its own model; they share the CPU cores. One that dies is replaced."""
    token_file: Path | None = None
    """File with the accepted tokens: one per line, at least 16 characters; lines with # are comments."""
    insecure: bool = False
    """Listen on other than loopback without tokens."""
    cors: tuple[str, ...] = ()
    """Origins of other web pages that may send requests, such as https://viewer.example.org."""
    queue: int = 128
    """Maximum number of requests active or waiting in each worker; further ones get 503 at once."""
    per_client: int | None = None
    """The same per token, or per address if there are no tokens; further ones get 429. Default: no limit."""
    window: float = 0.0
    """Seconds that a request waits for others to join its batch. While the network is busy a batch forms anyway;
    waiting longer gained nothing (docs/performance.md)."""
    max_megabytes: int = 64
    """Maximum size of a request's body, in MB."""
    max_seconds: float = 120.0
    """Maximum time of a request, from its header to the end of its response, in seconds."""
    quiet: bool = False
    """Log only warnings and errors: no requests, and not the address."""

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("port", self.port, 0, 65535), ("workers", self.workers, 1, math.inf), ("queue", self.queue, 1, math.inf),
            ("per-client", 1 if self.per_client is None else self.per_client, 1, math.inf),
            ("window", self.window, 0, 1),
            ("max-megabytes", self.max_megabytes, 1, math.inf), ("max-seconds", self.max_seconds, 0.001, math.inf),
        ):  # fmt: skip
            if not least <= value <= most:
                upper = "or more" if most == math.inf else f"to {most}"
                raise ConfigError(f"--{option} {value} is out of range.", cure=f"Use {least} {upper}.")
        if bad := [origin for origin in self.cors if "://" not in origin or origin.count("/") != 2]:
            raise ConfigError(
                f"--cors {bad[0]!r} is not an origin.",
                cure="Use scheme, host and port only: https://viewer.example.org",
            )
        if not self.is_loopback and self.token_file is None and not self.insecure:
            raise ConfigError(
                f"--host {self.host} is open to other machines, and no --token-file lists the accepted tokens.",
                cure="Write tokens, one per line (openssl rand -hex 32), and add --token-file FILE; or use --insecure.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def max_bytes(self) -> int:
        """Maximum size of a request's body."""
        return self.max_megabytes * 1_000_000

    @property
    def max_held(self) -> int:
        """Maximum size of all bodies together in a worker; further ones get 503."""
        return max(4 * self.max_bytes, 256_000_000)

    @property
    def limits(self) -> ReadLimits:
        """What one file may unpack to: stricter than on the command line, as files come from strangers."""
        from tumorlens.readers import ReadLimits  # keeps --help fast

        return ReadLimits(frames=1_000, entries=10_000, bytes=max(self.max_bytes, 128_000_000), ratio_from=16_000_000)

    def tokens(self) -> frozenset[bytes]:
        """SHA-256 of each token; empty without a token file.

        Raises
        ------
        ConfigError
            The file cannot be read, is empty, or contains a token that is too short to be a secret.
        """
        if self.token_file is None:
            return frozenset()
        try:
            lines = self.token_file.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", "not ASCII")
            raise ConfigError(
                f"--token-file {self.token_file} could not be read ({why}).", cure="Write one token per line."
            ) from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"--token-file {self.token_file} contains no token.", cure="Write one token per line.")
        for number, token in enumerate(found, 1):
            if len(token) < _TOKEN_LENGTH:  # the message may be logged, so it does not quote the token
                raise ConfigError(
                    f"--token-file {self.token_file}: token {number} has {len(token)} characters.",
                    cure=f"Use {_TOKEN_LENGTH} or more, such as from openssl rand -hex 32.",
                )
        return frozenset(hashlib.sha256(token.encode()).digest() for token in found)


def is_loopback(host: str) -> bool:
    """Whether this is localhost or a loopback address; no other name is resolved, as its owner decides how."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
