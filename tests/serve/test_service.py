"""Predictions for one file and for batches, in this process."""

import asyncio
import io
import json
import time
import zipfile

import httpx
import pytest
from folders import CLASSES
from phantom_files import write_dicom, write_nifti
from PIL import Image
from serve_model import noise, picture, png, problem_of, service, zipped

from tumorlens.inference.classifier import load_classifier
from tumorlens.inference.predict import predict
from tumorlens.readers import ReadLimits
from tumorlens.serve import service as answering
from tumorlens.serve.pictures import MAX_PICTURES
from tumorlens.serve.problems import Problem
from tumorlens.serve.service import CHUNK, PredictionOptions
from tumorlens.serve.settings import Settings


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
                assert found[0]["probabilities"] == pytest.approx(row.probabilities, abs=1e-5)
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


class TestBatch:
    def test_a_zip(self, here):
        answer = here.post("/v1/batch", content=zipped(a__1=png(0, 1), a__2=b"no picture", b=noise()))
        assert answer.headers["content-type"] == "application/x-ndjson"
        rows = [json.loads(line) for line in answer.text.splitlines()]
        assert [row["file"] for row in rows] == ["a/1", "a/2", "b"]
        assert rows[0]["verdict"] in ("ok", "uncertain")
        assert rows[1]["verdict"].startswith("error: of no format")
        assert rows[2]["verdict"].startswith("refused")

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
                    raise Problem("busy", "Too much to do.")
                if len(asked) == 2:
                    await asyncio.sleep(60)
                return await plain(*args)

            monkeypatch.setattr(batcher, "classify", classify)
            parts = [("f", (f"{i}.png", png())) for i in range(3 * CHUNK)]
            rows = [json.loads(line) for line in here.post("/v1/batch", files=parts).text.splitlines()]
        assert [row["file"] for row in rows] == ["0.png", None]
        assert rows[-1]["verdict"] == {"late": "error: it took too long", "busy": "error: Too much to do"}[why]
        assert "Not all was read" in rows[-1]["reason"]

    def test_a_damaged_zip_is_a_row(self, here):
        rows = here.post("/v1/batch", content=zipped(a=png())[:-30]).text.splitlines()
        assert [json.loads(row)["verdict"].split(":")[0] for row in rows] == ["error"]


def test_few_volumes_are_held_at_a_time(here, volume, monkeypatch):
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


def test_many_at_once_get_their_own_answers(here):
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


def test_zips_of_a_form_have_a_limit_together(model, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.png", b"x")
    monkeypatch.setattr(Settings, "limits", ReadLimits(entries=100))
    with service(model) as here:
        ask = [("f", (f"{i}.zip", content.getvalue())) for i in range(3)]
        rows = [json.loads(line) for line in here.post("/v1/batch", files=ask).text.splitlines()]
        whole = [json.loads(line) for line in here.post("/v1/batch", files=ask[:2]).text.splitlines()]
    assert (rows[-1]["file"], rows[-1]["verdict"]) == (None, "error: over 100 files in all")
    assert len(rows) - 1 <= 100
    assert len(whole) == 80
    assert all(row["file"] for row in whole)


class TestOneSlice:
    @pytest.fixture
    def pages(self):
        content = io.BytesIO()
        page = Image.open(io.BytesIO(png())).resize((32, 32))
        page.save(content, "TIFF", save_all=True, append_images=[page] * 59)
        return content.getvalue()

    @pytest.fixture
    def read(self, monkeypatch):
        """Counts what is read; each takes a moment."""
        found, plain = [], answering.read_stream

        def counted(*args, **more):
            for item in plain(*args, **more):
                found.append(item)
                time.sleep(0.02)
                yield item

        monkeypatch.setattr(answering, "read_stream", counted)
        return found

    def test_is_read_up_to_its_chunk(self, model, pages, read):
        with service(model) as here:
            rows = here.predict(pages, slice=2 * CHUNK + 1).json()["rows"]
        assert [row["slice"] for row in rows] == [2 * CHUNK + 1]
        assert len(read) == 3 * CHUNK

    def test_that_takes_too_long_is_not_read_on(self, model, pages, read):
        with service(model, max_seconds=0.3) as here:
            assert problem_of(here.predict(pages, slice=59)) == (503, "took-too-long")
            before = len(read)
            time.sleep(0.6)
            assert len(read) <= before + CHUNK


class TestWaitingBatch:
    @pytest.mark.parametrize("why", ["late", "stopping"])
    def test_that_gets_no_turn_says_so_in_its_last_line(self, model, why):
        with service(model, max_seconds=3.0 if why == "late" else 30.0) as here:
            serving = here.app.state.service

            async def ask():
                taken = [await serving.streams.acquire() for _ in range(answering._CONCURRENT)]
                asked = asyncio.create_task(here.client.post("/v1/batch", files=[("f", ("a.png", png()))]))
                await asyncio.sleep(0.3)
                here.app.state.admission.must_stop = why == "stopping"
                answer = await asyncio.wait_for(asked, 30)
                for _ in taken:
                    serving.streams.release()
                return answer

            rows = [json.loads(line) for line in here.run(ask()).text.splitlines()]
            assert [row["file"] for row in rows] == [None]
            verdicts = {"late": "error: it took too long", "stopping": "error: the service is stopping"}
            assert rows[0]["verdict"] == verdicts[why]
            assert serving.streams._value == answering._CONCURRENT

    def test_that_is_given_up_leaves_its_place(self, model):
        with service(model) as here:
            serving = here.app.state.service

            async def ask():
                for _ in range(answering._CONCURRENT):
                    await serving.streams.acquire()
                batches = [serving.batch([("a.png", io.BytesIO(png()))], PredictionOptions()) for _ in range(2)]
                first, second = (asyncio.create_task(anext(lines)) for lines in batches)
                await asyncio.sleep(0.05)
                serving.streams.release()
                first.cancel()  # in the moment when its turn comes
                return json.loads(await asyncio.wait_for(second, 5))

            assert here.run(ask())["file"] == "a.png"


def test_batches_that_nobody_reads_do_not_stand_in_the_way_of_volumes(model, tmp_path):
    volume, _ = write_nifti(tmp_path / "volume.nii.gz", 0, "glioma", 0)
    with service(model) as here:
        serving = here.app.state.service
        streams = [serving.batch([("a.png", io.BytesIO(png()))] * 20, PredictionOptions()) for _ in range(8)]

        async def begin():
            return [asyncio.create_task(anext(stream)) for stream in streams]

        begun = here.run(begin())
        assert here.predict(volume.read_bytes(), slice=0).status_code == 200

        async def end():
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            for stream in streams:
                await stream.aclose()
            # While there is a loop to answer them: else they wait at the interpreter's end.
            await asyncio.to_thread(serving.batches.shutdown)

        here.run(end())
