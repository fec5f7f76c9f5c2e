"""Fixtures of the page's tests: a browser a module, a service and a page a test."""

from __future__ import annotations

import page_states
import pytest
from page_server import serving
from page_states import opened
from playwright.sync_api import sync_playwright


# Not for the whole session: playwright's event loop would be in the way of tests that run their own.
@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = page_states.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def blank(browser):
    """A page that fails the test where a script fails, the policy is broken, or another host is asked."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong, hosts = [], set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    yield page
    context.close()
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []
    assert {host.split(":")[0] for host in hosts} <= {"", "127.0.0.1"}


@pytest.fixture
def page(blank, server):
    return opened(blank, server)
