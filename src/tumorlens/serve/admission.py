"""How much the service takes on: places, bytes and time, all given back when a request ends, however it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from tumorlens.serve.problems import Problem, busy, stopping
from tumorlens.serve.settings import Settings

STALL = 15.0  # seconds without a byte, or a line that is not read, after which a client is given up
GRACE, RATE = 5.0, 50_000  # a body may take this many seconds, and one more for each so many bytes that came
T = TypeVar("T")


@dataclass
class Admission:
    """What is in work in this process."""

    settings: Settings
    in_work: int = 0
    """Requests whose body is there."""
    present: int = 0
    """Requests of any kind that are not answered yet."""
    held: int = 0
    """Bytes of their bodies."""
    draining: bool = False
    """Whether the service is stopping: what is in work is finished, new files are answered 503."""
    hurried: bool = False
    """Whether what is in work has had its time to finish: long work stops where it stands, and says so."""
    by_client: Counter[str] = field(default_factory=Counter)
    """Requests of each, from their first byte on."""
    told: Callable[[int], None] = lambda _: None
    """Hears how many are in work whenever that changes."""

    def check(self, client: str) -> None:
        """Problem unless one more request has a place."""
        if self.draining:
            raise stopping("What was asked before is being finished.")
        if self.in_work >= self.settings.queue:
            raise busy(f"{self.in_work} requests are in work or waiting, the most that this service takes on.")
        most = self.settings.per_client
        if most is not None and self.by_client[client] >= most:
            raise busy(f"{most} requests of yours are in work or waiting.", "too-many-requests")


@dataclass
class Visit:
    """What one request holds."""

    admission: Admission
    client: str
    bytes: int = 0
    begun: bool = False
    placed: bool = False

    def begin(self) -> None:
        """Count among the client's own, its body still on its way: else few could hold all memory for bodies."""
        self.admission.check(self.client)
        self.admission.by_client[self.client] += 1
        self.begun = True

    def hold(self, n: int) -> None:
        """Count n more bytes of the body."""
        if self.admission.held + n > self.admission.settings.max_held:
            raise busy("The bodies of all requests in work leave no memory for another.")
        self.admission.held += n
        self.bytes += n

    def place(self) -> None:
        """Take a place among the requests in work."""
        self.admission.check("")  # its own share it has already
        self.admission.in_work += 1
        self.placed = True
        self.admission.told(self.admission.in_work)

    def end(self) -> None:
        """Give everything back."""
        self.admission.held -= self.bytes
        self.bytes = 0
        if self.placed:
            self.placed = False
            self.admission.in_work -= 1
            self.admission.told(self.admission.in_work)
        if self.begun:
            self.begun = False
            self.admission.by_client[self.client] -= 1
            if not self.admission.by_client[self.client]:
                del self.admission.by_client[self.client]


async def body_of(request: Request) -> bytes:
    """The whole body, under the caps on bytes and time; then the request has its place among those in work.

    A place is taken when the body is there and not before, so that clients who dawdle take none.

    Raises
    ------
    Problem
        400 empty, 408 too slow, 413 too large, 429 or 503 no place.
    ClientDisconnect
        Nobody waits for an answer.
    """
    visit: Visit = request.scope["visit"]
    visit.begin()
    most = visit.admission.settings.max_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(int(declared), most)
    chunks, n = [], 0
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(GRACE) as patience:
            async for chunk in request.stream():
                n += len(chunk)
                if n > most:
                    raise _too_large(n, most)
                visit.hold(len(chunk))
                chunks.append(chunk)
                now = asyncio.get_running_loop().time()  # who sends fast and then stalls holds memory for nothing
                patience.reschedule(min(began + GRACE + n / RATE, now + STALL))
    except TimeoutError:
        raise Problem(
            "too-slow",
            f"{n:,} bytes came in {asyncio.get_running_loop().time() - began:.0f} s.",
            cure=f"Send {RATE // 1000} kB/s or more.",
            headers={"connection": "close"},
        ) from None
    if not n:
        raise Problem("bad-request", "The body is empty.", cure="Send the file's content as the request's body.")
    visit.place()
    return b"".join(chunks)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(n: int, most: int) -> Problem:
    return Problem(
        "too-large",
        f"The body has {n:,} bytes or more, over the limit of {most:,}.",
        cure="Send less at once, or raise --max-megabytes.",
        headers={"connection": "close"},
    )
