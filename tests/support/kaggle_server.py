"""A local server that speaks for Kaggle: the two addresses that kagglehub asks for a data set.

`POST /v1/datasets.DatasetApiService/DownloadDataset` answers with an error or redirects to
`GET /storage/archive.zip`, which stands for the storage behind Kaggle. Also a small data set to serve.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

API = "/v1/datasets.DatasetApiService/DownloadDataset"
STORAGE = "/storage/archive.zip"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def dataset_files(prefix: str = "") -> dict[str, bytes]:
    """Name → content of a data set with three training and two test images a class."""
    return {
        f"{prefix}{part}/{label}/{part[:2]}_{i}.jpg": jpeg(100 * k + i + 10 * (part == "Testing"))
        for part, n in (("Training", 3), ("Testing", 2))
        for k, label in enumerate(CLASSES)
        for i in range(n)
    }


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass
class Seen:
    """One request that came in."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    body: dict[str, Any]


@dataclass
class Kaggle:
    """What the server does, and what it was asked."""

    archive: bytes
    """Served as the data set."""
    statuses: list[int] = field(default_factory=list)
    """API answers to give first, one a request; then it redirects."""
    breaks: list[int | None] = field(default_factory=list)
    """Bytes after which successive transfers break off; None, and all later ones: whole.

    kagglehub asks twice when it resumes, first without a range, and reads the second answer alone.
    """
    ranges: Literal["honoured", "ignored", "not offered"] = "honoured"
    checksum: Literal["right", "wrong", "none"] = "right"
    newest_client: str | None = None
    """Version of kagglehub to call the newest one."""
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def transfers(self) -> list[str | None]:
        """The Range header of each request to the storage."""
        return [s.range for s in self.seen if s.path == STORAGE]


@contextmanager
def serving(kaggle: Kaggle) -> Iterator[Kaggle]:
    """Serve on a free port of 127.0.0.1 until the block ends; `url` is filled in."""

    class Handler(_Handler):
        state = kaggle

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kaggle.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kaggle
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Kaggle

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._remember(body)
        if self.path != API:
            self._json(404, {"code": 404, "message": "no such call"})
        elif self.state.statuses:
            status = self.state.statuses.pop(0)
            self._json(status, {"code": status, "message": f"the server says {status}"})
        else:
            self.send_response(302)
            self.send_header("Location", f"{self.state.url}{STORAGE}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        self._remember({})
        if self.path != STORAGE:
            self._json(404, {"code": 404, "message": "no such object"})
            return
        whole, start = self.state.archive, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.state.ranges == "honoured":
            start = int(asked[1])
            if start >= len(whole):
                self._json(416, {"message": "range not satisfiable"})
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(whole) - start))
        if self.state.ranges != "not offered":
            self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if self.state.checksum != "none":
            true = hashlib.md5(whole if self.state.checksum == "right" else b"other").digest()
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={base64.b64encode(true).decode()}")
        if self.state.newest_client:
            self.send_header("X-Kaggle-HubVersion", self.state.newest_client)
        self.end_headers()
        stop = self.state.breaks.pop(0) if self.state.breaks else None
        with suppress(OSError):  # the client may have heard enough
            self.wfile.write(whole[start:] if stop is None else whole[start : start + stop])
        self.close_connection = True

    def _remember(self, body: dict[str, Any]) -> None:
        self.state.seen.append(
            Seen(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"), body)
        )

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the test says what went wrong."""
