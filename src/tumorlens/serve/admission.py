"""Admission control: limits on open requests, body bytes and time. A request gives back what it took when it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tumorlens.serve.problems import Problem
from tumorlens.serve.settings import Settings

STALL = 15.0  # seconds without a byte received, or without a line read, after which a client is dropped
GRACE, RATE = 5.0, 50_000  # a body may take so many seconds, plus one for each so many bytes received


@dataclass
class Admission:
    """What this process is working on."""

    settings: Settings
    active: int = 0
    """Requests whose body has been received."""
    open_requests: int = 0
    """Requests of any kind without a complete response."""
    body_bytes: int = 0
    """Bytes of their bodies."""
    draining: bool = False
    """Whether the service is stopping: active requests are finished, new ones get 503."""
    must_stop: bool = False
    """Whether the time to finish is over: long work ends where it is, and reports that."""
    by_client: Counter[str] = field(default_factory=Counter)
    """Requests of each client, counted from their first byte."""
    on_active: Callable[[float], None] = lambda _: None
    """Called with what is added to `active`: 1 or −1."""

    def require_capacity(self, client: str = "") -> None:
        """Raise a Problem (429 or 503) if no further request is accepted."""
        if self.draining:
            raise Problem("stopping", "Only requests received earlier are being finished.")
        if self.active >= self.settings.queue:
            raise Problem("busy", f"{self.active} requests are active or waiting, the maximum of this service.")
        limit = self.settings.per_client
        if limit is not None and self.by_client[client] >= limit:
            raise Problem("too-many-requests", f"{limit} of your requests are active or waiting.")


@dataclass
class Reservation:
    """What one request has taken of the limits."""

    admission: Admission
    client: str
    bytes: int = 0
    started: bool = False
    active: bool = False

    def start(self) -> None:
        """Count the request for its client while its body is still arriving, so that few cannot fill the memory."""
        self.admission.require_capacity(self.client)
        self.started = True
        self.admission.by_client[self.client] += 1

    def add_bytes(self, n: int) -> None:
        """Count n more bytes of the body."""
        if self.admission.body_bytes + n > self.admission.settings.max_held:
            raise Problem("busy", "The bodies of all active requests leave no memory for another.")
        self.admission.body_bytes += n
        self.bytes += n

    def activate(self) -> None:
        """Take one of the `queue` places."""
        self.admission.require_capacity()  # its client's limit was checked at the start
        self.active = True
        self.admission.active += 1
        self.admission.on_active(1)

    def release(self) -> None:
        """Give everything back; called once."""
        self.admission.body_bytes -= self.bytes
        self.admission.by_client -= Counter({self.client: self.started})  # drops zeros
        if self.active:
            self.admission.active -= 1
            self.admission.on_active(-1)


async def read_body(request: Request) -> bytes:
    """The whole body, within the limits on bytes and time; the request is active afterwards.

    It becomes active only when its body has arrived, so that slow clients take no places.

    Raises
    ------
    Problem
        400 empty, 408 too slow, 413 too large, 429 or 503 no capacity.
    ClientDisconnect
        The client closed the connection.
    """
    reservation: Reservation = request.scope["reservation"]
    reservation.start()
    limit = reservation.admission.settings.max_bytes
    declared = request.headers.get("content-length", "")
    _check_size(int(declared) if declared.isdecimal() else 0, limit)
    body = bytearray()
    now = asyncio.get_running_loop().time
    began = now()
    try:
        async with asyncio.timeout(GRACE) as deadline:
            async for chunk in request.stream():
                _check_size(len(body) + len(chunk), limit)
                reservation.add_bytes(len(chunk))
                body += chunk
                # A client that sends fast and then stalls must not hold its memory.
                deadline.reschedule(min(began + GRACE + len(body) / RATE, now() + STALL))
    except TimeoutError:
        raise Problem(
            "too-slow",
            f"{len(body):,} bytes were received in {now() - began:.0f} s.",
            cure=f"Send at least {RATE // 1000} kB/s.",
            headers={"connection": "close"},
        ) from None
    if not body:
        raise Problem(
            "bad-request",
            "The body is empty.",
            cure="Send the file's bytes as the body, as curl --data-binary @slice.png does.",
        )
    reservation.activate()
    return bytes(body)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `work`, which is cancelled (ClientDisconnect) when the client closes the connection."""
    task, disconnect = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_size(n: int, limit: int) -> None:
    if n > limit:
        raise Problem(
            "too-large",
            f"The body has {n:,} bytes or more, over the limit of {limit:,}.",
            cure="Send less at once, or raise --max-megabytes.",
            headers={"connection": "close"},
        )
