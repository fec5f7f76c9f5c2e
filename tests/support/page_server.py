"""The service's API as the page sees it, with answers made up from what a file says of itself.

A picture's answer is told by the mark that stands behind its last byte (`marked`). So every state of the page can
be had at once, without a model; that the real service speaks the same language is for other tests.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

import tumorlens
from tumorlens.inference.heatmap import colormap

STATIC = Path(tumorlens.__file__).parent / "serve" / "static"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SLICES = 24
#: As the service sends it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
INTERVALS = {"test": (1311, 0.984, (0.975, 0.989)), "twin_free": (326, 0.969, (0.944, 0.983)),
             "below_0.95": (196, 0.949, (0.908, 0.972))}  # fmt: skip
CARD: dict[str, Any] = {
    "model": "made-up-000000", "architecture": "torchvision resnet18", "classes": list(CLASSES),
    "configuration": "finetuned", "intended_use": "Research and teaching. Not for diagnosis.",
    "limits": ["It knows its classes and nothing else."], "takes": {"bytes": 2_000_000, "formats": "PNG, DICOM"},
    "volume_rule": "Three neighbours decide.",
    "dataset": {"name": "a set that is made up", "n_images": 7023, "fingerprint": "0" * 64, "licence": "CC0"},
    "preprocessing": {"size": [224, 224], "input": "RGB", "resize": "bilinear"},
    "split": {"source": "85/15", "test_source": "folder"},
    "measured": {part: {"n": n, "correct": round(n * share), "accuracy": share, "accuracy_interval": list(interval)}
                 for part, (n, share, interval) in INTERVALS.items()},
}  # fmt: skip


def marked(image: Image.Image, mark: str = "") -> bytes:
    """A PNG with a mark behind it: nothing for ok, else uncertain, refused, damaged or slow."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue() + mark.encode()


def dicom(number: int) -> bytes:
    """What begins as a DICOM file does, with a number for its place in the series."""
    return bytes(128) + b"DICM" + bytes([number])


def volume(n: int = 1) -> bytes:
    """What begins as a packed NIfTI file does, with so many volumes."""
    return gzip.compress(b"volume%d" % n, mtime=0)


class Refusal(Exception):  # noqa: N818 - as the standard says "problem"
    """A problem answer."""

    def __init__(self, status: int, title: str, detail: str, cure: str) -> None:
        super().__init__(detail)
        kind = title.lower().replace(" ", "-")
        self.status = status
        self.content = {"type": f"urn:tumorlens:problem:{kind}", "title": title, "status": status, "detail": detail,
                        "cure": cure}  # fmt: skip


def image_row(data: bytes) -> dict[str, Any]:
    mark = data[data.index(b"IEND") + 8 :].decode() if b"IEND" in data else ""
    row: dict[str, Any] = {"kind": "image", "slice": None}
    if mark == "refused":
        return row | {"class": None, "probabilities": None, "set": [], "verdict": "refused: not a brain MRI",
                      "reason": "colour, border or outline unlike the training images", "score": 3.4}  # fmt: skip
    if mark == "uncertain":
        p = {"glioma": 0.58, "meningioma": 0.36, "notumor": 0.04, "pituitary": 0.02}
        return row | {"class": "glioma", "probabilities": p, "set": ["glioma", "meningioma"],
                      "verdict": "uncertain", "reason": "may be glioma or meningioma", "score": 0.7}  # fmt: skip
    p = {"glioma": 0.972, "meningioma": 0.021, "notumor": 0.0065, "pituitary": 0.0005}
    return row | {"class": "glioma", "probabilities": p, "set": ["glioma"], "verdict": "ok", "reason": "",
                  "score": 0.31}  # fmt: skip


def slice_row(i: int, n: int) -> dict[str, Any]:
    """A slice of a volume: refused at both ends, uncertain beside them, a meningioma in the middle."""
    if i < n // 8 or i >= n - n // 8:
        return image_row(b"IEND____refused") | {"kind": "slice", "slice": i}
    bump = float(np.exp(-(((i - 0.55 * n) / (0.18 * n)) ** 2))) * 0.96
    p = {"glioma": 0.02, "meningioma": bump, "notumor": 0.97 - bump, "pituitary": 0.01}
    label = max(p, key=p.__getitem__)
    sure = p[label] > 0.75
    return {"kind": "slice", "slice": i, "class": label, "probabilities": p,
            "set": [label] if sure else ["meningioma", "notumor"], "verdict": "ok" if sure else "uncertain",
            "reason": "" if sure else "may be meningioma or notumor", "score": 0.4}  # fmt: skip


def volume_row() -> dict[str, Any]:
    p = {"glioma": 0.01, "meningioma": 0.95, "notumor": 0.03, "pituitary": 0.01}
    return {"kind": "volume", "slice": None, "class": "meningioma", "probabilities": p, "set": [], "verdict": "ok",
            "reason": "", "score": None}  # fmt: skip


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """As the service answers for one file; Refusal where it has no picture."""
    if data.startswith(b"\x1f\x8b"):
        volumes = int(gzip.decompress(data).removeprefix(b"volume"))
        note = {"kind": "image", "slice": None, "class": None, "probabilities": None, "set": [], "score": None,
                "verdict": "error: holds 3 volumes, of which the first alone was read",
                "reason": "Choose one with ?volume=1 to ?volume=3."}  # fmt: skip
        return [
            *(slice_row(i, SLICES) for i in range(SLICES)),
            *[note] * (not volumes),
            *[volume_row()] * (volumes or 1),
        ]
    if data[128:132] == b"DICM":
        return [slice_row(data[132], 8)]
    if data.endswith(b"damaged"):
        raise Refusal(422, "The file could not be read", "The body: a PNG that is cut off.", "Copy it again.")
    if not data.startswith(b"\x89PNG"):
        raise Refusal(415, "Unsupported file format", "The body: of no format that is read.",
                      "These are read: JPEG, PNG, DICOM, NIfTI.")  # fmt: skip
    return [image_row(data)]


def url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pictures(row: dict[str, Any], data: bytes, label: str | None) -> dict[str, str | None]:
    """The picture, and a warm spot whose place tells the class."""
    if data.startswith(b"\x89PNG"):
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224))
    else:
        y, x = np.mgrid[-1:1:224j, -1:1:224j]
        head = (x**2 + (0.8 * y) ** 2 < 0.5) * (90 + 4 * (row["slice"] or 0))
        image = Image.fromarray(np.repeat(head.astype(np.uint8)[..., None], 3, 2))
    if not row["class"]:
        return {"image": url(image), "heatmap": None}
    y, x = np.mgrid[0:224, 0:224]
    place = CLASSES.index(label or row["class"])
    heat = np.exp(-((x - 70 - 30 * place) ** 2 + (y - 90 - 15 * place) ** 2) / 1800)
    level = (255 * heat).astype(np.uint8)
    return {"image": url(image), "heatmap": url(Image.fromarray(np.dstack([colormap()[level], level])))}


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        try:
            if path == "/v1/model":
                self.admit()
                self.send(json.dumps(self.server.card).encode())
            elif path == "/v1/sample":
                self.admit()
                self.send(self.server.sample, "image/png")
            else:
                file = STATIC / (path.lstrip("/") or "index.html")
                found = file.is_file() and file.parent == STATIC
                content = file.read_bytes() if found else b""
                self.send(content, TYPES.get(file.suffix, "text/plain"), 200 if found else 404)
        except Refusal as refusal:
            self.refuse(refusal)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        url = urlsplit(self.path)
        asked = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.server.asked.append((url.path, asked, data))
        try:
            self.admit()
            if self.server.busy:
                self.server.busy -= 1
                self.send(json.dumps(self.server.why).encode(), "application/problem+json", 503, retry=1)
            elif url.path == "/v1/predict":
                self.send(json.dumps(self.predict(data, asked)).encode())
            else:
                lines = [json.dumps(row).encode() + b"\n" for row in self.batch(data)]
                if self.server.cut:
                    lines[-2:] = [b"{", b" " * 99]
                self.send(b"".join(lines), "application/x-ndjson", lost=99 if self.server.cut else 0)
        except Refusal as refusal:
            self.refuse(refusal)
        except ConnectionError:
            pass  # the page cancelled

    def predict(self, data: bytes, asked: dict[str, str]) -> dict[str, Any]:
        if data.endswith(b"slow"):
            time.sleep(self.server.delay)
        rows = rows_of(data)
        if "slice" in asked:
            rows = [row for row in rows if row["slice"] == int(asked["slice"])]
        for i, row in enumerate(rows):
            if asked.get("heatmap") == "png" and row["kind"] != "volume" and (len(rows) == 1 or i % 4 == 0):
                row |= pictures(row, data, asked.get("class"))
        return {"model": self.server.card["model"], "rows": rows, "seconds": 0.01}

    def batch(self, data: bytes) -> Iterator[dict[str, Any]]:
        files = unzipped(data) if data.startswith(b"PK") else parts(data, self.headers["Content-Type"])
        series = []
        for name, content in files:
            try:
                for row in rows_of(content):
                    joined = None if row["kind"] == "image" else "series-1"
                    series += [name] if joined else []
                    yield row | {"file": name, "series": joined}
            except Refusal as refusal:
                yield {"file": name, "series": None, "kind": "image", "slice": None, "class": None, "set": [],
                       "probabilities": None, "verdict": f"error: {refusal.content['detail']}",
                       "reason": refusal.content["cure"], "score": None}  # fmt: skip
        if len(set(series)) > 1:
            yield volume_row() | {"file": ".", "series": "series-1"}

    def admit(self) -> None:
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise Refusal(401, "A token is needed", "The token is not known.", "Send one that is.")

    def refuse(self, refusal: Refusal) -> None:
        self.send(json.dumps(refusal.content).encode(), "application/problem+json", refusal.status)

    def send(
        self, content: bytes, kind: str = "application/json", status: int = 200, retry: int | None = None, lost: int = 0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        if retry is not None:
            self.send_header("Retry-After", str(retry))
        self.end_headers()
        self.wfile.write(content[: len(content) - lost])
        if lost:
            time.sleep(1)  # a browser throws away what came in the same moment as the end


def unzipped(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield f"/{name}", archive.read(name)


def parts(data: bytes, content_type: str) -> Iterator[tuple[str, bytes]]:
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + data)
    for part in message.get_payload():
        assert not isinstance(part, str)
        yield part.get_filename() or "", part.get_payload(decode=True)  # type: ignore[misc]


class Fake(ThreadingHTTPServer):
    """The server; its attributes can be changed between requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.card = CARD
        self.sample = marked(Image.new("L", (64, 64), 90))
        self.token = ""
        self.busy = 0  # requests that will be told to come again
        self.why: dict[str, str] = {}  # what they are told
        self.cut = False  # whether a batch ends before its last two rows
        self.delay = 30.0  # seconds that a slow picture takes
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


@contextmanager
def serving() -> Iterator[Fake]:
    """A running server."""
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
