"""Every state of the page, and how accessible each is by axe: in light and dark, wide and narrow.

python tests/page_states.py     prints JSON, and can save screenshots:  python tests/page_states.py FOLDER
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from folders import draw
from page_server import Fake, marked, serving, volume
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

LOOKS = tuple((scheme, width) for width in (1280, 390) for scheme in ("light", "dark"))  # pixels


def chromium() -> str | None:
    """The system's own."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=chromium())


def file(name: str, content: bytes) -> dict[str, Any]:
    """What playwright puts into the page's file input."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def choose(page: Page, *files: dict[str, Any]) -> None:
    page.set_input_files("#files", list(files))


def head(mark: str = "", number: int = 0) -> bytes:
    """A drawn head whose answer is the mark's."""
    return marked(draw(0, number), mark)


def zipped(**files: bytes) -> bytes:
    """A zip with inner/NAME.png of each."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(f"inner/{name}.png", body)
    return content.getvalue()


def pictured(page: Page) -> bool:
    """The picture is there, as large as the network saw it."""
    expect(page.locator(".light")).not_to_have_class(re.compile("loading"))
    expect(page.locator("img.slice")).to_have_js_property("naturalWidth", 224)
    return True


def opened(page: Page, server: Fake) -> Page:
    page.goto(server.url)
    page.wait_for_selector("#card .measured")
    return page


def _one(mark: str, state: str) -> Callable[[Page, Fake], None]:
    def make(page: Page, server: Fake) -> None:
        choose(page, file(f"{state}.png", head(mark)))
        page.wait_for_selector(f".verdict.{state}")

    return make


def _volume(slice_number: int, state: str) -> Callable[[Page, Fake], None]:
    def make(page: Page, server: Fake) -> None:
        if not page.locator("#slice").count():
            choose(page, file("a volume.nii.gz", volume()))
        page.locator("#slice").fill(str(slice_number))
        page.wait_for_selector(f".verdict.small.{state}")
        page.wait_for_selector(".light:not(.loading)")

    return make


def _nothing(page: Page, server: Fake) -> None:
    pass


def _settings(page: Page, server: Fake) -> None:
    page.locator(".settings summary").click()


def _token(page: Page, server: Fake) -> None:
    server.token = "a token that is long"
    page.reload()
    page.wait_for_selector("#ask[open]")


def _no_card(page: Page, server: Fake) -> None:
    page.locator("#ask-cancel").click()
    page.wait_for_selector("#card button")
    server.token = ""


#: In an order in which each follows from the one before, so that the list of the session grows.
STATES: dict[str, Callable[[Page, Fake], None]] = {
    "empty": _nothing,
    "settings": _settings,
    "ok": _one("", "ok"),
    "uncertain": _one("uncertain", "uncertain"),
    "refused": _one("refused", "refused"),
    "error": _one("damaged", "error"),
    "volume": _volume(13, "ok"),
    "volume, uncertain slice": _volume(8, "uncertain"),
    "volume, refused slice": _volume(0, "refused"),
    "token asked": _token,
    "no card": _no_card,
}


def violations(page: Page) -> list[dict[str, Any]]:
    """What axe finds wrong with the page as it is."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        {"rule": one["id"], "help": one["help"], "places": [node["html"] for node in one["nodes"]]} for one in found
    ]


def audit(
    browser: Browser, server: Fake, looks: Sequence[tuple[str, int]] = LOOKS, folder: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Violations by state, scheme and width; screenshots into the folder."""
    found: dict[str, list[dict[str, Any]]] = {}
    page = opened(browser.new_context().new_page(), server)
    for name, make in STATES.items():
        make(page, server)
        for scheme, width in looks:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found[f"{name}, {scheme}, {width} px"] = violations(page)
            if folder:
                page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page="token" not in name)
    page.context.close()
    return found


def main(folder: Path | None) -> None:
    with serving() as server, sync_playwright() as playwright:
        server.sample = marked(Image.new("L", (64, 64), 90))
        browser = launch(playwright)
        axe = Axe().run(browser.new_page()).response["testEngine"]["version"]
        found = {"browser": browser.version, "axe": axe, "states": audit(browser, server, folder=folder)}
        print(json.dumps(found, indent=1))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
