"""A browser without a network for pages that must need none: Chromium from the system, and axe for what people with impairments meet.

What is missing skips a test, with the reason.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import npmcache
import pytest

__all__ = ["Opened", "chromium", "opened", "serious_faults"]

_WAIT_MS = 60_000


@dataclass
class Opened:
    """A page in a browser, and what was noticed while it opened."""

    page: Any
    said: list[str] = field(default_factory=list)  # warnings and errors of the console
    asked_for: list[str] = field(default_factory=list)  # every address
    ready_s: float = 0.0  # until all was drawn


@contextmanager
def chromium() -> Iterator[Any]:
    """Hold a headless Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: nobody looked at the pages")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280, dark: bool = False) -> Iterator[Opened]:
    """Open a file with the network cut, and wait until it says that everything is drawn."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme, reduced_motion="reduce"
    )
    seen = Opened(context.new_page())
    seen.page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    seen.page.on("request", lambda request: seen.asked_for.append(request.url))
    began = time.monotonic()
    seen.page.goto(path.as_uri(), timeout=_WAIT_MS)
    seen.page.wait_for_selector("html[data-drawn]", state="attached", timeout=_WAIT_MS)
    seen.ready_s = time.monotonic() - began
    yield seen
    context.close()


def serious_faults(page: Any) -> list[str]:
    """Return what axe calls serious or worse; the page is of no more use afterwards."""
    axe = npmcache.modules() / "axe-core" / "axe.min.js"
    page.evaluate(axe.read_text(encoding="utf-8"))
    # What is in a drawing is hidden from readers, and takes axe half of its time even if it is told to pass over it.
    page.evaluate("document.querySelectorAll('.plot svg > g[aria-hidden=true]').forEach(marks => marks.remove())")
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in {"serious", "critical"}]
