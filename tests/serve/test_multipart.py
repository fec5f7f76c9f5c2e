"""Multipart forms and zips as the body of a batch."""

import io
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_model import png, problem_of, service

from tumorlens.serve.multipart import files_of
from tumorlens.serve.problems import TYPES, Problem

WRONG = ["*=idna''x", "*=a%00b''x", "*=utf-8''x; {0}*1=y", "*" + "9" * 5_000 + "=x"]  # after a parameter's name

KINDS = ["idna", "nul", "mixed", "digits"]


def test_names_of_parts_come_back_as_they_were_sent(here):
    names = ["größe.png", "脑.png", "ö.png", "ä.png"]
    body = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + png() + b"\r\n"
        for name in names
    )
    answer = here.post(
        "/v1/batch", content=body + b"--b--", headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert [json.loads(line)["file"] for line in answer.text.splitlines()] == names


def test_other_bodies(here):
    assert problem_of(here.post("/v1/batch", content=png())) == (415, "unsupported-format")
    multipart = {"content-type": "multipart/form-data"}
    assert problem_of(here.post("/v1/batch", content=b"x", headers=multipart)) == (400, "bad-request")


class TestParameters:
    @pytest.mark.parametrize("wrong", WRONG, ids=KINDS)
    def test_of_a_part(self, model, wrong):
        header = "Content-Disposition: form-data; filename" + wrong.format("filename")
        body = f"--b\r\n{header}\r\n\r\nx\r\n--b--".encode()
        with service(model) as here:
            answer = here.post("/v1/batch", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        assert problem_of(answer) == (400, "bad-request")
        assert "Part 1" in answer.json()["detail"]

    @pytest.mark.parametrize("wrong", WRONG, ids=KINDS)
    def test_of_the_request(self, model, wrong):
        kind = "multipart/form-data; boundary" + wrong.format("boundary")
        with service(model) as here:
            answer = here.post("/v1/batch", content=b"--x\r\n\r\nx\r\n--x--", headers={"content-type": kind})
        assert problem_of(answer) == (400, "bad-request")


class TestParts:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\r\n", b"\r\n--", b"--\r\n"]), min_size=1, max_size=5))
    def test_what_httpx_writes_is_read_back(self, contents):
        request = httpx.Request("POST", "http://localhost", files=[("f", ("n.png", c)) for c in contents])
        found = list(files_of(request.read(), request.headers["content-type"], 10))
        assert [(name, part.read()) for name, part in found] == [("n.png", content) for content in contents]

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from([b"--b", b"--", b"\r\n", b"a: b", b"x", b"\n"]), max_size=12).map(b"".join))
    def test_anything_is_parts_or_a_problem(self, body):
        try:
            found = [part for _, part in files_of(body, "multipart/form-data; boundary=b", 9)]
        except Problem as problem:
            found = []
            problem_kind = problem.kind
        assert (found and all(isinstance(part, io.BytesIO) for part in found)) or TYPES[problem_kind][0] in (400, 413)

    def test_parts_have_a_cap_and_need_no_header(self):
        body = b"--b\r\n\r\nx\r\n" * 3 + b"--b--"
        found = files_of(body, "multipart/mixed; boundary=b", 3)
        assert [(name, part.read()) for name, part in found] == [(f"part-{i}", b"x") for i in (1, 2, 3)]
        with pytest.raises(Problem, match="3 parts"):
            files_of(body, "multipart/mixed; boundary=b", 2)

    def test_headers_have_a_cap_together(self):
        body = (b"--b\r\na: " + b"x" * 8_000 + b"\r\n\r\nx\r\n") * 600 + b"--b--"
        with pytest.raises(Problem, match="headers of all parts are over 4,000,000 bytes"):
            files_of(body, "multipart/mixed; boundary=b", 1000)
