"""What was sent instead of a file is named, with what to send."""

import base64
import gzip
import io
import json
import tarfile

import pytest
from phantom_files import write_dicom, write_nifti
from PIL import Image
from serve_model import png, problem_of, zipped

pytestmark = pytest.mark.case(25)
NAME = "Mueller_Anna"
BASE64 = base64.b64encode(png()).decode()


def form():
    return (
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{NAME}.png"\r\n\r\n'.encode()
        + png() + b"\r\n--b--\r\n"
    )  # fmt: skip


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(info := tarfile.TarInfo("a.png"), io.BytesIO(png()[: info.size]))
    return content.getvalue()


SENT = {
    "form": (form(), {"content-type": "multipart/form-data; boundary=b"}, "is a form (multipart/form-data)",
             "/v1/batch"),
    "form of another type": (form(), {}, "is a form (multipart/form-data)", "--data-binary"),
    "urlencoded": (f"name={NAME}&x=1".encode(), {"content-type": "application/x-www-form-urlencoded"},
                   "is a form (application/x-www-form-urlencoded)", "--data-binary"),
    "JSON": (json.dumps({"image": BASE64}).encode(), {"content-type": "application/json"}, "is JSON", "not base64"),
    "a JSON string": (json.dumps(BASE64).encode(), {"content-type": "application/json"}, "is JSON", "not base64"),
    "base64": (BASE64.encode(), {}, "is base64 text", "Decode it"),
    "base64 in lines": (base64.encodebytes(png()), {}, "is base64 text", "Decode it"),
    "data: URL": (f"data:image/png;base64,{BASE64}".encode(), {}, "is a data: URL", "comma"),
    "a name": (f"{NAME}.png".encode(), {}, "is a short text", "with @ before the name"),
    "an address": (f"https://example.org/{NAME}.png".encode(), {}, "is a short text", "opens no paths or addresses"),
    "a quoted string": (f'"{BASE64}"'.encode(), {}, "is JSON", "not base64"),
    "JSON with a mark": (b"\xef\xbb\xbf" + json.dumps({"a": BASE64}).encode(), {}, "is JSON", "not base64"),
    "hexadecimal": (png().hex().encode(), {}, "is hexadecimal text", "Decode it"),
    "printed bytes": (repr(png()).encode(), {}, "is how Python prints bytes", "open('slice.png', 'rb')"),
    "UTF-16": ((NAME * 50).encode("utf-16"), {}, "is text", "--data-binary"),
    "quoted data: URL": (b"data%3Aimage%2Fpng%3Bbase64%2CiVBO", {}, "is a data: URL", "comma"),
    "HTML": (f"<!doctype html><title>{NAME}</title>".encode(), {}, "is HTML or XML", "error page"),
    "text": (f"{NAME},1\n".encode() * 500, {"content-type": "text/csv"}, "is text", "--data-binary"),
    "packed": (gzip.compress(png()), {"content-encoding": "gzip"}, "with a Content-Encoding (gzip)", "without"),
    "packed otherwise": (b"\x8b\x02\x80x", {"content-encoding": NAME}, "Content-Encoding (of another kind)", "without"),
    "curl -d": (png().translate(None, b"\0\r\n"), {"content-type": "application/x-www-form-urlencoded"},
                "has no line breaks or zero bytes", "--data-binary"),
    "tar": (tarred(), {}, "is a tar archive", "Make it a zip"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90), {}, "is a 7z archive", "Make it a zip"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/batch"])
@pytest.mark.parametrize("kind", SENT)
def test_the_body_is_named_with_what_to_send(here, path, kind):
    body, headers, detail, cure = SENT[kind]
    answer = here.post(path, content=body, headers=headers)
    if path == "/v1/batch" and kind == "form":
        assert answer.status_code == 200
        return
    assert problem_of(answer) == (415, "unsupported-format")
    if path == "/v1/batch" and kind == "form of another type":
        detail, cure = "its Content-Type is another", "multipart/form-data"
    assert detail in answer.json()["detail"]
    assert cure in answer.json()["cure"]
    assert NAME not in answer.text


def test_what_can_be_read_is_read_whatever_its_headers_say(here, volume):
    for headers in ({"content-type": "multipart/form-data; boundary=b"}, {"content-type": "application/json"},
                    {"content-encoding": "gzip"}):  # fmt: skip
        assert here.post("/v1/predict", content=png(), headers=headers).status_code == 200
    packed = {"content-encoding": "gzip"}
    assert here.post("/v1/predict", content=volume.read_bytes(), headers=packed).status_code == 200


def test_a_damaged_file_stays_a_damaged_file(here):
    answer = here.post("/v1/predict", content=png()[:500], headers={"content-type": "image/png"})
    assert problem_of(answer) == (422, "unreadable")
    assert problem_of(here.predict(bytes(range(256)))) == (415, "unsupported-format")


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/batch"])
def test_an_empty_body(here, path):
    answer = here.post(path, content=b"")
    assert problem_of(answer) == (400, "bad-request")
    assert "--data-binary" in answer.json()["cure"]


def test_other_bodies_of_a_batch(here, volume):
    for body in (png(), volume.read_bytes()):
        answer = here.post("/v1/batch", content=body)
        assert "is one file" in answer.json()["detail"]
        assert "/v1/predict" in answer.json()["cure"]
    empty = here.post("/v1/batch", content=b"--b--\r\n", headers={"content-type": "multipart/form-data; boundary=b"})
    assert empty.json()["detail"] == "The form has no parts."
    option = here.post("/v1/batch", files={"file": ("a.png", png())}, data={"plane": "coronal"})
    assert problem_of(option) == (400, "bad-request")
    assert "is the option plane" in option.json()["detail"]
    assert "/v1/batch?plane=" in option.json()["cure"]
    assert "/v1/batch" in here.predict(zipped(a=png())).json()["cure"]


def test_cures_name_parameters_not_options(here):
    """In problems and in rows."""
    import nibabel
    import numpy as np

    flat = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8), np.eye(4)).to_bytes()
    problem = here.predict(flat, plane="sagittal").json()
    assert "?plane=axial" in problem["cure"]
    answer = here.post("/v1/batch", files={"file": ("a.nii", flat)}, params={"plane": "sagittal"})
    assert "?plane=axial" in json.loads(answer.text)["reason"]


class TestVolumes:
    @pytest.fixture
    def three(self):
        import nibabel
        import numpy as np

        volumes = np.random.default_rng(0).integers(0, 255, (64, 64, 4, 3), np.uint8)
        return nibabel.Nifti1Image(volumes, np.eye(4)).to_bytes()

    @pytest.mark.parametrize("path", ["/v1/predict", "/v1/batch"])
    def test_that_are_missing(self, here, three, path):
        sent = {"content": three} if path == "/v1/predict" else {"files": {"file": ("a.nii", three)}}
        answer = here.post(path, params={"volume": 9}, **sent)
        assert "there is no volume 9" in answer.text
        assert "Use ?volume=1 to ?volume=3." in answer.text

    def test_that_are_chosen(self, here, three):
        one = here.predict(three, volume=2).json()["rows"]
        batch = here.post("/v1/batch", params={"volume": 2}, files={"file": ("a.nii", three)})
        rows = [json.loads(line) for line in batch.text.splitlines()]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in one], nan_ok=True)
        first = here.predict(three).json()["rows"]
        assert first[0]["score"] != pytest.approx(one[0]["score"], rel=1e-6)
        assert not any(row["verdict"].startswith("error") for row in rows)

    def test_of_a_series_in_several_files(self, here, tmp_path):
        files = [("f", (path.name, path.read_bytes())) for path in write_dicom(tmp_path, 0, "glioma", 0)[10:14]]
        for number, errors in ((1, []), (2, ["error: holds one volume, so there is no volume 2"])):
            answer = here.post("/v1/batch", params={"volume": number}, files=files)
            rows = [json.loads(line) for line in answer.text.splitlines()]
            assert [row["verdict"] for row in rows if row["verdict"].startswith("error")] == errors
            assert sum(row["kind"] == "slice" for row in rows) == (0 if errors else 4)


class TestMissingSlices:
    def missing(self, here, body, n=99):
        answer = here.predict(body, slice=n)
        assert problem_of(answer) == (422, "invalid-parameter")
        assert f"there is no slice {n}." in answer.json()["detail"]
        return answer.json()["detail"], answer.json()["cure"]

    def test_of_an_image(self, here):
        assert "only slice is 0." in self.missing(here, png())[0]

    def test_of_pages(self, here):
        content = io.BytesIO()
        page = Image.open(io.BytesIO(png())).resize((32, 32))
        page.save(content, "TIFF", save_all=True, append_images=[page] * 4)
        detail, cure = self.missing(here, content.getvalue())
        assert "slices are 0 to 4." in detail
        assert cure.startswith("Use 0 to 4,")

    def test_of_a_dicom_file(self, here, tmp_path):
        content = write_dicom(tmp_path, 0, "glioma", 0)[20].read_bytes()
        assert "only slice is 20." in self.missing(here, content)[0]

    def test_of_a_volume(self, here, volume):
        assert "slices are 0 to" in self.missing(here, volume.read_bytes())[0]

    def test_of_several_volumes(self, here, tmp_path):
        import nibabel
        import numpy as np

        path, _ = write_nifti(tmp_path / "one.nii.gz", 0, "glioma", 0)
        one = np.asarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack([one, one, one], 3), np.eye(4)), tmp_path / "three.nii.gz")
        detail, _ = self.missing(here, (tmp_path / "three.nii.gz").read_bytes())
        assert "slices are 0 to" in detail
        assert "3 volumes" in detail
