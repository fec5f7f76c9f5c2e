"""Error responses: problem details."""

import gzip
import re
import struct
import zlib
from pathlib import Path

import pytest
from serve_model import png, problem_of, service, zipped

from tumorlens.serve.problems import TYPES


class TestProblems:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b"", (400, "bad-request")),
            (b"hello", (415, "unsupported-format")),
            (zipped(a=b"x"), (415, "unsupported-format")),
            (png()[:500], (422, "unreadable")),
            (gzip.compress(b"0" * 1000, mtime=0), (422, "unreadable")),
        ],
        ids=["empty", "text", "zip", "cut off", "gzip"],
    )
    def test_bodies(self, here, body, expected):
        assert problem_of(here.predict(body)) == expected

    @pytest.mark.parametrize(
        "query",
        [{"coverage": 1}, {"coverage": "x"}, {"plane": "up"}, {"heatmap": "gif"}, {"class": "cat"}, {"slice": -1}],
    )
    def test_parameters(self, here, query):
        assert problem_of(here.predict(png(), **query)) == (422, "invalid-parameter")

    def test_a_bomb_is_refused_by_its_header(self, here):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
        packed = zlib.compress(bytes(1_000_000))
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        assert problem_of(here.predict(bomb)) == (413, "too-large")

    def test_an_internal_error_does_not_show_what_was_sent(self, model, caplog, monkeypatch):
        def fails(*_args, **_more):
            raise ValueError("SECRET of a patient")

        monkeypatch.setattr("tumorlens.serve.service.read_stream", fails)
        with service(model) as here:
            answer = here.predict(png())
            assert problem_of(answer) == (500, "internal")
            assert here.app.state.admission.active == 0
        assert "SECRET" not in answer.text + caplog.text
        assert "ValueError" in caplog.text


def test_every_problem_stands_in_the_documentation():
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", text, flags=re.M)
    assert {(int(status), kind) for status, kinds in rows for kind in re.findall("`(.+?)`", kinds)} == {
        (status, kind) for kind, (status, _) in TYPES.items()
    }
