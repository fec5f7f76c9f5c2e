"""The audit's page in a browser: it opens offline, is readable on a phone, in the dark, and without a mouse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import page_states
import pytest
from folders import picture
from PIL import Image
from playwright.sync_api import Browser, Page

from tumorlens.cli.app import main
from tumorlens.study import experiment

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.skipif(page_states.chromium() is None, reason="no chromium on this machine")
LABELS = ("glioma", "no tumour")
LONG = "a name without any place to break it " * 2 + "x" * 70


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with, in each class, a copy and a mirrored copy in Testing, and a copy with another label."""
    root = tmp_path_factory.mktemp("audited") / "data"
    for k, label in enumerate(LABELS):
        for part, first, n in (("Training", 0, 12), ("Testing", 500, 6)):
            (root / part / label).mkdir(parents=True)
            pixels = [picture(1000 * k + first + i) for i in range(n)]
            if part == "Testing":
                pixels[0], pixels[1] = picture(1000 * k), np.fliplr(picture(1000 * k + 1))
            for i, values in enumerate(pixels):
                Image.fromarray(values).save(root / part / label / f"{i:03d}.png")
    Image.fromarray(picture(1)).save(root / "Training" / "no tumour" / f"{LONG}.png")
    return root


def doubts(model, rows, *_) -> list[dict[str, str]]:
    """Of every label."""
    return [{"path": row.path, "label": row.label, "neighbours_say": LABELS[row.label == LABELS[0]]} for row in rows]


@pytest.fixture(scope="module")
def file(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command writes."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "find_label_doubts", doubts)  # whose network is not what is tested
        words = ["--html", str(folder / "audit.html"), "--cache", str(folder / "cache"), "--weights", "none"]
        assert main(["data", "audit", str(audited), *words]) == 0
    return folder / "audit.html"


@pytest.fixture
def page(browser: Browser, file: Path):
    """A page that fails the test where it asks for anything but itself, or its console tells of an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.set_default_timeout(15_000)
    yield page
    context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith("data:image/")] == [file.as_uri()]


def test_every_picture_is_in_the_file(page: Page) -> None:
    shown = page.evaluate("[...document.images].map((one) => [one.complete, one.naturalWidth])")
    assert len(shown) == 4 * 2 + 2 * 2 + 37  # of leaks and conflicts two each, of doubts one
    assert all(one == [True, 112] for one in shown)
    assert page.locator(".missing").count() == 0


def test_pairs_stand_side_by_side_under_their_class(page: Page) -> None:
    left, right = (page.locator("#leaks .pairs img").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert page.locator("#leaks h3").all_inner_texts() == list(LABELS)
    assert (
        page.locator("#leaks .how").all_inner_texts()
        == ["direct, cosine similarity 1.0000", "mirrored, cosine similarity 1.0000"] * 2
    )


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_is_wider_than_the_screen_but_tables_that_scroll(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, .vh')"
        " && one.getBoundingClientRect().right > innerWidth).map((one) => one.outerHTML)"
    )
    assert over == []
    assert page.locator("#doubts img").first.bounding_box()["width"] == 112


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_follows_the_scheme(page: Page, scheme: str, dark: bool) -> None:
    page.emulate_media(color_scheme=scheme)
    paper, ink = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (paper < ink) == dark


def test_the_keyboard_reaches_what_scrolls_and_shows_where_it_is(page: Page) -> None:
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.innerText"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == [
        "Skip to the audit", "Twins of test images by class", "Twins within the training images",
        "Accuracy by file property",
    ]  # fmt: skip
    page.locator(".skip").press("Enter")
    page.wait_for_url("**#report")


@pytest.mark.parametrize(("scheme", "width"), page_states.LOOKS)
def test_axe_finds_nothing(page: Page, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert page_states.violations(page) == []
