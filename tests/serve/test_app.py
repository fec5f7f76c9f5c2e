"""The service's answers, in this process."""

import asyncio
import base64
import gzip
import io
import json
import struct
import zipfile
import zlib

import httpx
import numpy as np
import pytest
from folders import CLASSES
from phantom_files import write_dicom, write_nifti
from PIL import Image
from serve_model import noise, png, problem_of, service, write_model

from tumorlens.inference.classifier import load_classifier
from tumorlens.inference.heatmap import colours
from tumorlens.inference.predict import predict
from tumorlens.serve import service as answering
from tumorlens.serve.pictures import MAX_PICTURES
from tumorlens.serve.problems import busy
from tumorlens.serve.service import CHUNK


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "classifier.onnx")


@pytest.fixture(scope="module")
def here(model):
    with service(model) as running:
        yield running


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    path, _ = write_nifti(tmp_path_factory.mktemp("volume") / "Mueller_Anna.nii.gz", 0, "glioma", 0)
    return path


def picture(url):
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in files.items():
            archive.writestr(name.replace("__", "/"), body)
    return content.getvalue()


class TestPredict:
    def test_answers_as_predict_does(self, here, model, tmp_path):
        for i, content in enumerate([*(png(label, 7) for label in range(4)), noise()]):
            path = tmp_path / f"{i}.png"
            path.write_bytes(content)
            row = next(iter(predict([str(path)], load_classifier(model, 1))))
            found = here.predict(content).json()["rows"]
            assert len(found) == 1
            assert found[0]["class"] == (row.label or None)
            assert found[0]["verdict"] == row.verdict
            assert found[0]["set"] == list(row.set)
            assert found[0]["score"] == pytest.approx(row.score, rel=1e-4)
            if row.label:
                assert list(found[0]["probabilities"].values()) == pytest.approx(
                    list(row.probabilities.values()), abs=1e-5
                )
                assert list(found[0]["probabilities"]) == list(CLASSES)

    def test_a_refused_image_names_no_class_and_has_no_heatmap(self, here):
        row = here.predict(noise(), heatmap="png", **{"class": "glioma"}).json()["rows"][0]
        assert row["verdict"].startswith("refused")
        assert row["class"] is row["probabilities"] is row["heatmap"] is None
        assert row["set"] == []
        assert picture(row["image"]).shape == (224, 224, 3)

    def test_pictures_only_where_asked(self, here):
        row = here.predict(png()).json()["rows"][0]
        assert "image" not in row
        assert "heatmap" not in row

    def test_the_overlay_is_transparent_where_nothing_is_hot(self, here):
        row = here.predict(png(), heatmap="png").json()["rows"][0]
        overlay = picture(row["heatmap"])
        assert overlay.shape == (224, 224, 4)
        assert overlay[..., 3].max() == 255
        np.testing.assert_array_equal(overlay[..., :3], colours()[overlay[..., 3]])
        others = [here.predict(png(), heatmap="png", **{"class": c}).json()["rows"][0]["heatmap"] for c in CLASSES]
        assert row["heatmap"] in others
        assert len(set(others)) > 1

    def test_coverage_widens_the_set(self, here):
        sizes = [len(here.predict(png(), coverage=c).json()["rows"][0]["set"]) for c in (0.05, 0.999)]
        assert sizes == [1, 4]

    def test_different_coverages_in_one_batch_do_not_mix(self, here):
        wanted = [0.05, 0.999, 0.95, 0.05, 0.999]

        async def at_once():
            ask = (here.client.post("/v1/predict", content=png(), params={"coverage": c}) for c in wanted)
            return [len(answer.json()["rows"][0]["set"]) for answer in await asyncio.gather(*ask)]

        sizes = here.run(at_once())
        assert sizes[0] == sizes[3] == 1
        assert sizes[1] == sizes[4] == 4

    def test_a_volume_has_a_row_a_slice_and_one_for_the_whole(self, here, model, volume):
        rows = here.predict(volume.read_bytes(), heatmap="png").json()["rows"]
        wanted = list(predict([str(volume)], load_classifier(model, 1)))
        assert [(r["kind"], r["slice"], r["verdict"], r["class"]) for r in rows] == [
            (r.kind, r.slice, r.verdict, r.label or None) for r in wanted
        ]
        assert sum(r.get("image") is not None for r in rows) == MAX_PICTURES
        assert "image" not in rows[-1]

    def test_one_slice_of_a_volume(self, here, volume):
        rows = here.predict(volume.read_bytes(), heatmap="png", slice=CHUNK + 3).json()["rows"]
        assert [row["slice"] for row in rows] == [CHUNK + 3]
        assert rows[0]["image"]
        assert problem_of(here.predict(volume.read_bytes(), slice=900)) == (422, "invalid-parameter")
        assert problem_of(here.predict(b"\x1f\x8b" + bytes(500), slice=900)) == (422, "unreadable")

    def test_a_dicom_file_is_a_slice_without_a_whole_and_tells_no_name(self, here, tmp_path):
        content = write_dicom(tmp_path, 0, "glioma", 0)[20].read_bytes()
        answer = here.predict(content)
        assert [row["kind"] for row in answer.json()["rows"]] == ["slice"]
        assert "Phantom" not in answer.text


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

    def test_paths_and_methods(self, here):
        assert problem_of(here.get("/v1/nothing")) == (404, "not-found")
        assert problem_of(here.get("/nothing")) == (404, "not-found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/predict", "POST"),  # the page is there for any path with GET
            ("PUT", "/v1/predict", "POST"),
            ("GET", "/v1/batch", "POST"),
            ("POST", "/v1/model", "GET"),
            ("DELETE", "/healthz", "GET, HEAD"),
            ("POST", "/openapi.json", "GET, HEAD"),
            ("POST", "/docs", "GET"),
            ("POST", "/style.css", "GET, HEAD"),
        ],
    )
    def test_other_methods_are_told_those_of_the_path(self, here, method, path, allowed):
        answer = here.run(here.client.request(method, path))
        assert problem_of(answer) == (405, "method-not-allowed")
        assert answer.headers["allow"] == allowed

    def test_a_fault_is_told_without_what_was_sent(self, model, caplog, monkeypatch):
        def fails(*_args, **_more):
            raise ValueError("SECRET of a patient")

        monkeypatch.setattr("tumorlens.serve.service.read_stream", fails)
        with service(model) as here:
            answer = here.predict(png())
            assert problem_of(answer) == (500, "internal")
            assert here.app.state.admission.active == 0
        assert "SECRET" not in answer.text + caplog.text
        assert "ValueError" in caplog.text


class TestBatch:
    def test_a_zip(self, here):
        answer = here.post("/v1/batch", content=zipped(a__1=png(0, 1), a__2=b"no picture", b=noise()))
        assert answer.headers["content-type"] == "application/x-ndjson"
        rows = [json.loads(line) for line in answer.text.splitlines()]
        assert [row["file"] for row in rows] == ["a/1", "a/2", "b"]
        assert rows[0]["verdict"] in ("ok", "uncertain")
        assert rows[1]["verdict"].startswith("error: of no format")
        assert rows[2]["verdict"].startswith("refused")

    def test_names_of_parts_come_back_as_they_were_sent(self, here):
        names = ["größe.png", "脑.png", "ö.png", "ä.png"]
        body = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + png() + b"\r\n"
            for name in names
        )
        answer = here.post(
            "/v1/batch", content=body + b"--b--", headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert [json.loads(line)["file"] for line in answer.text.splitlines()] == names

    def test_parts_and_volumes_keep_apart(self, here, volume):
        parts = [("f", ("one.nii.gz", volume.read_bytes())), ("f", ("two.nii.gz", volume.read_bytes())),
                 ("f", ("c.png", png()))]  # fmt: skip
        rows = [json.loads(line) for line in here.post("/v1/batch", files=parts).text.splitlines()]
        assert [row["file"] for row in rows if row["kind"] == "volume"] == ["one.nii.gz", "two.nii.gz"]
        assert [row["file"] for row in rows if row["kind"] == "image"] == ["c.png"]

    def test_a_service_that_must_stop_says_so_in_the_last_line(self, model, volume):
        with service(model) as here:
            here.app.state.admission.must_stop = True
            parts = [("f", (f"{i}.png", png())) for i in range(3 * CHUNK)]
            rows = [json.loads(line) for line in here.post("/v1/batch", files=parts).text.splitlines()]
            assert [row["file"] for row in rows] == [*(f"{i}.png" for i in range(CHUNK)), None]
            assert rows[-1]["verdict"] == "error: the service is stopping"
            assert problem_of(here.predict(volume.read_bytes())) == (503, "stopping")

    @pytest.mark.parametrize("why", ["late", "busy"])
    def test_a_batch_that_is_broken_off_says_so_in_the_last_line(self, model, monkeypatch, why):
        with service(model, max_seconds=5.0) as here:
            batcher = here.app.state.service.batcher
            plain, asked = batcher.classify, []

            async def classify(*args):
                asked.append(1)
                if len(asked) == 2 and why == "busy":
                    raise busy("Too much to do.")
                if len(asked) == 2:
                    await asyncio.sleep(60)
                return await plain(*args)

            monkeypatch.setattr(batcher, "classify", classify)
            parts = [("f", (f"{i}.png", png())) for i in range(3 * CHUNK)]
            rows = [json.loads(line) for line in here.post("/v1/batch", files=parts).text.splitlines()]
        assert [row["file"] for row in rows] == ["0.png", None]
        assert rows[-1]["verdict"] == {"late": "error: it took too long", "busy": "error: Too much to do"}[why]
        assert "Not all was read" in rows[-1]["reason"]

    def test_other_bodies(self, here):
        assert problem_of(here.post("/v1/batch", content=png())) == (415, "unsupported-format")
        multipart = {"content-type": "multipart/form-data"}
        assert problem_of(here.post("/v1/batch", content=b"x", headers=multipart)) == (400, "bad-request")

    def test_a_damaged_zip_is_a_row(self, here):
        rows = here.post("/v1/batch", content=zipped(a=png())[:-30]).text.splitlines()
        assert [json.loads(row)["verdict"].split(":")[0] for row in rows] == ["error"]


class TestOthers:
    def test_model(self, here):
        card = here.get("/v1/model").json()
        assert card["model"] == "tiny-fp32-01234567"
        assert card["classes"] == list(CLASSES)
        assert card["takes"]["bytes"] == 64_000_000
        assert card["limits"]

    def test_sample(self, here):
        answer = here.get("/v1/sample")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size[0] >= 200
        assert here.predict(answer.content).status_code == 200

    def test_metrics_count_requests_and_verdicts(self, model):
        with service(model) as here:
            here.predict(png())
            here.predict(noise())
            here.predict(b"x")
            here.run(here.client.request("NAMEOFAPATIENT", "/healthz"))
            text = here.get("/metrics").text
        assert 'tumorlens_requests_total{method="POST",route="/v1/predict",status="200"} 2.0' in text
        assert "NAMEOFAPATIENT" not in text
        assert 'method="other"' in text
        assert 'tumorlens_requests_total{method="POST",route="/v1/predict",status="415"} 1.0' in text
        assert 'tumorlens_verdicts_total{verdict="refused"} 1.0' in text
        assert "tumorlens_distance_count 2.0" in text
        assert "tumorlens_batch_images_count 2.0" in text
        drift = next(line for line in text.splitlines() if line.startswith("tumorlens_distance_drift"))
        assert float(drift.split()[1]) > 1  # the noise is far away

    def test_documents_name_every_route_and_load_nothing_foreign(self, here):
        page = here.get("/docs").text
        for path in here.get("/openapi.json").json()["paths"]:
            assert path in page
        assert "://" not in page.replace("http://localhost", "")
        assert "<script" not in page

    def test_health(self, here):
        for path in ("/healthz", "/readyz"):
            assert here.get(path).status_code == 200
            asked = here.run(here.client.head(path))  # as monitors ask
            assert (asked.status_code, asked.content) == (200, b"")

    def test_security_headers_stand_around_every_answer(self, here):
        for answer in (here.get("/healthz"), here.get("/v1/nothing"), here.predict(b"x"), here.predict(png())):
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in answer.headers
            assert "server" not in answer.headers

    def test_few_volumes_are_held_at_a_time(self, here, volume, monkeypatch):
        live, most = set(), []

        def counted(*args, **kwargs):
            token = object()
            live.add(token)
            most.append(len(live))
            try:
                yield from read_stream(*args, **kwargs)
            finally:
                live.discard(token)

        read_stream = answering.read_stream
        monkeypatch.setattr(answering, "read_stream", counted)

        async def at_once():
            ask = (here.client.post("/v1/predict", content=volume.read_bytes()) for _ in range(9))
            return [answer.status_code for answer in await asyncio.gather(*ask)]

        assert here.run(at_once()) == [200] * 9
        assert 1 < max(most) <= answering._CONCURRENT

    def test_many_at_once_get_their_own_answers(self, here):
        bodies = [png(label, number) for label in range(4) for number in range(10)]
        alone = [here.predict(body).json()["rows"] for body in bodies]

        async def at_once():
            return await asyncio.gather(*(here.client.post("/v1/predict", content=b) for b in bodies))

        answers: list[httpx.Response] = here.run(at_once())
        for answer, wanted in zip(answers, alone, strict=True):
            found = answer.json()["rows"][0]
            assert found["verdict"] == wanted[0]["verdict"]
            assert found["class"] == wanted[0]["class"]
            assert found["probabilities"] == pytest.approx(wanted[0]["probabilities"], abs=1e-4)
