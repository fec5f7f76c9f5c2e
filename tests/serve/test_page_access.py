"""The page for everybody: axe, keyboard, phone; and the page with the real service."""

import re
import socket
import threading

import nibabel
import numpy as np
import page_states
import pytest
from folders import draw
from page_server import SLICES, STATIC, volume
from page_states import choose, file, pictured, zipped
from playwright.sync_api import expect

from tumorlens.inference.heatmap import colormap

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.skipif(page_states.chromium() is None, reason="no chromium on this machine")
SETTINGS = "Settings for the next files"


class TestForEverybody:
    def test_axe_finds_nothing_in_any_state(self, browser, server):
        # Both schemes and both widths; benchmarks/page.py goes through all four pairs.
        found = page_states.audit(browser, server, looks=(("light", 390), ("dark", 1280)))
        assert len(found) == 2 * len(page_states.STATES)
        assert {state: wrong for state, wrong in found.items() if wrong} == {}

    def test_axe_would_find_something(self, page):
        page.evaluate("document.querySelector('#drop').append(document.createElement('img'))")
        assert [one["rule"] for one in page_states.violations(page)] == ["image-alt"]

    def test_the_keyboard_reaches_everything_and_shows_where_it_is(self, page):
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("(document.activeElement.id || document.activeElement.innerText)"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert reached[:6] == ["Skip to the prediction", "Session", "Model card", "choose", "sample", SETTINGS]
        assert reached[-1] == "API description"  # the last one
        page.locator("#sample").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".verdict.ok")).to_be_visible()

    def test_the_notice_stays_in_sight_and_nothing_is_cut_off_on_a_phone(self, page):
        page.set_viewport_size({"width": 390, "height": 844})
        choose(page, file("n" * 90 + ".nii.gz", volume()))
        expect(page.locator(".verdict").first).to_be_in_viewport()  # the answer is scrolled to
        expect(page.locator(".notice strong")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".measured caption").bounding_box()["width"] > 300  # a block, not a column of letters
        page.locator("footer").scroll_into_view_if_needed()
        expect(page.locator(".notice strong")).to_be_in_viewport(ratio=1)
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"  # reduced motion


def test_the_scale_has_the_colours_of_the_heatmaps():
    ramp = re.search(r"linear-gradient\(90deg, ([^)]*)\)", (STATIC / "result.css").read_text()).group(1)
    assert ramp.split(", ") == ["#" + bytes(colormap()[i]).hex() for i in (0, 64, 128, 191, 255)]


@pytest.fixture(scope="module")
def real(model):
    """The service itself with a tiny model."""
    uvicorn = pytest.importorskip("uvicorn")

    from tumorlens.inference.classifier import load_classifier
    from tumorlens.serve.app import create_app
    from tumorlens.serve.settings import Settings

    app = create_app(load_classifier(model, 1), Settings(model=model, quiet=True))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        service = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=service.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        service.should_exit = True
        thread.join()


class TestRealService:
    def test_every_kind_of_file(self, blank, real, tmp_path):
        from phantom_files import write_dicom
        from serve_model import noise, png

        heads = np.stack([np.asarray(draw(0, i, 224)) for i in range(SLICES)], 2)
        nifti = nibabel.Nifti1Image(heads, np.eye(4)).to_bytes()
        series = write_dicom(tmp_path, 0, "glioma", 0)[10:16]
        blank.goto(real)
        expect(blank.locator("#card .caution")).to_contain_text("The accuracy is not known.")
        expect(blank.locator("#card")).to_contain_text("Accuracy on all test images is inflated")
        for name, content, state in (("a.png", png(), "ok"), ("noise.png", noise(), "refused"),
                                     ("a.txt", b"text", "error")):  # fmt: skip
            choose(blank, file(name, content))
            expect(blank.locator("#result-title")).to_have_text(name)
            expect(blank.locator(f".verdict.{state}")).to_be_visible()
            assert state == "error" or pictured(blank)
        expect(blank.locator(".verdict.error")).to_contain_text("What to do:")
        choose(blank, file("brain.nii", nifti))
        expect(blank.locator(".slider output")).to_have_text(f"Slice {SLICES // 2} of {SLICES}")
        blank.locator("#slice").fill("1")
        assert pictured(blank)
        choose(blank, *(file(path.name, path.read_bytes()) for path in series))
        expect(blank.locator("#result-title")).to_have_text("IM0011.dcm and 5 more")
        expect(blank.locator(".slider output")).to_have_text("Slice 13 (3 of 6)")
        assert pictured(blank)
        choose(blank, file("study.zip", zipped(one=png(1), two=noise())))
        expect(blank.locator("#result-title")).to_have_text("study.zip/inner/one.png")
        assert pictured(blank)
        blank.get_by_role("button", name="sample").click()
        expect(blank.locator("#result-title")).to_have_text("Generated sample")
        assert pictured(blank)

    @pytest.mark.case(25)
    def test_the_api_description_shows_every_route_and_fits_its_window(self, blank, real):
        """Also behind a proxy's prefix: every link and request is relative."""
        prefix = f"{real}brain/"
        blank.route(
            f"{prefix}**",
            lambda route: route.fulfill(response=route.fetch(url=real + route.request.url[len(prefix) :])),
        )
        blank.goto(f"{prefix}docs")
        blank.wait_for_selector("section:nth-of-type(7)")
        text = blank.locator("main").inner_text()
        description = blank.evaluate("fetch('openapi.json').then(response => response.json())")
        for path, methods in description["paths"].items():
            for route in methods.values():
                assert path in text
                assert all(parameter["description"] in text for parameter in route.get("parameters", []))
        assert blank.evaluate("document.documentElement.scrollWidth") == 1280
        assert page_states.violations(blank) == []
        blank.get_by_role("link", name="Classify in the browser").click()
        expect(blank.locator("#formats")).to_contain_text("NIfTI, and zips of them")
        expect(blank.locator("#card")).to_contain_text("metastases")
        blank.get_by_role("link", name="API description").click()
        expect(blank.locator("#title")).to_contain_text("tumorlens ")
        assert blank.url == f"{prefix}docs"
