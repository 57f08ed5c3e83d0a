"""The page for people: what it says is what the quotes say, strangers' text stays text, and a browser, a keyboard and a screen reader get along with it."""

from __future__ import annotations

import functools
import html
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npmcache
import pytest
from test_price import STRANGER, node
from test_scoring import gpu

from harness.market.sales.page import CSP, HEADERS, Listing, listing, page
from harness.market.sales.shop import Shelved
from harness.scoring import price
from harness.scoring.evidence import quote

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from harness.model import Quote

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 25, 15, 45, tzinfo=UTC)
CHROMIUM = shutil.which("chromium") or ""
CARDS = {  # name: GiB, half and single precision, bandwidth, and how fast it was on which day of November
    "NVIDIA H100 80GB HBM3": (80, 758e12, 51.9e12, 3026e9, {3: 0.97, 9: 0.99, 15: 0.9, 21: 0.96, 24: 1.0}),
    "NVIDIA GeForce RTX 4090": (24, 165e12, 50e12, 920e9, {10: 1.0, 24: 0.93}),
    "NVIDIA A100-SXM4-80GB": (80, 270e12, 18.5e12, 1750e9, {24: 1.0}),
}


def shelved(name: str) -> Shelved:
    gib, fp16, fp32, memory, days = CARDS[name]
    device = replace(gpu(name, memory_gib=gib), uuid=f"GPU-{list(CARDS).index(name) + 1:012d}", driver="580.95.05")
    rated = {day: node(fp16 * f, fp32 * f, memory * f, device=device) for day, f in days.items()}
    reports = [replace(report, sealed_at=f"2026-11-{day:02d}T12:00:00Z") for day, report in rated.items()]
    history = tuple(price(report) for report in reports)
    return Shelved(report=reports[-1], quote=history[-1], device=device, history=history)


@functools.cache
def listings() -> tuple[Listing, ...]:
    (cpu,) = quote(*(ROOT / "results").glob("2*.json"))
    return (*(listing(shelved(name)) for name in CARDS), Listing(quote=cpu, history=(cpu,)))


@functools.cache
def whole() -> str:
    return page(listings(), now=NOW)


def of(quote: Quote, **more: Any) -> str:
    return page([Listing(quote=replace(quote, **more), history=(quote,))], now=NOW)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_every_line_of_every_price_is_there_and_they_sum_to_it() -> None:
    for one in listings():
        found = of(one.quote)
        rows = re.findall(r'<td class="n">(−?\d+\.\d{6})</td></tr>', found)  # noqa: RUF001 - a minus sign
        *lines, total = (Decimal(row.replace("\N{MINUS SIGN}", "-")) for row in rows)
        assert tuple(lines) == tuple(line.usd_per_hour for line in one.quote.breakdown)
        assert sum(lines) == total == one.quote.price_usd_per_hour


def test_price_interval_floor_history_and_evidence_are_said_in_words() -> None:
    h100 = listings()[0].quote
    text = html.unescape(whole())
    assert h100.low_usd_per_hour
    for said in (
        f"{h100.price_usd_per_hour:.2f} USD an hour; four of five such prices lie from {h100.low_usd_per_hour:.2f} to {h100.high_usd_per_hour:.2f}",
        "5 prices from 2026-11-03 12:00 UTC to 2026-11-24 12:00 UTC",
        "One report so far",
        f'href="/v1/evidence/{h100.report_digest}"',
        *h100.evidence,
        "good until 2026-11-25 15:49 UTC",
        "as of the measurement; ask for a signed quote",
    ):
        assert said in text, said


def test_the_curve_rises_where_the_price_does() -> None:
    prices = [one.price_usd_per_hour for one in listings()[0].history]
    heights = [float(p.split(",")[1]) for p in re.findall(r'polyline points="([^"]+)"', whole())[0].split()]
    assert len(heights) == len(prices) == 5
    order = sorted(range(5), key=lambda i: prices[i] or Decimal(0))
    assert order == sorted(range(5), key=lambda i: -heights[i])  # SVG counts down from the top


def test_a_device_without_a_price_says_why_and_none_at_all_says_so() -> None:
    stranger = price(node(device=STRANGER, state="throttled"))
    assert stranger.price_usd_per_hour is None
    found = html.unescape(of(stranger))
    assert "No price" in found
    assert stranger.reasons[0] in found
    assert "No devices yet" in page([], now=NOW)


HOSTILE = (
    "\"'><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\N{RIGHT-TO-LEFT OVERRIDE}{{ 7 * 7 }}"
)


def test_a_strangers_text_stays_text() -> None:
    quote = listings()[0].quote
    line = replace(quote.breakdown[0], name=HOSTILE, basis=HOSTILE)
    found = of(quote, device_name=HOSTILE, device_uuid=HOSTILE, report_digest=HOSTILE, evidence=(HOSTILE,), reasons=(HOSTILE,), breakdown=(line,), digests={HOSTILE: HOSTILE})  # fmt: skip
    assert not re.search(r"<(script|img)", found)
    assert "49" not in found.split("<h1>")[0]
    assert html.escape("<script>") in found
    linked = page([listing(replace(shelved_h100(), quote=replace(quote, report_digest=HOSTILE)))], now=NOW)
    assert re.findall(r'href="(?!#|/v1/|/openapi|/\.well-known/|data:,)', linked) == []


def shelved_h100() -> Shelved:
    return shelved("NVIDIA H100 80GB HBM3")


def test_nothing_comes_from_elsewhere_and_the_policy_says_so() -> None:
    assert not re.search(r"https?://|<script|\sstyle=|\son\w+=|@import|url\(", whole())
    assert "default-src 'none'" in CSP
    assert "unsafe" not in CSP
    assert HEADERS["Content-Security-Policy"] == CSP


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(
            page([listings()[0], listings()[-1]], now=NOW).encode()
        )  # one of each kind: axe takes seconds for more

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@contextmanager
def opened(browser: Browser, url: str, width: int, scheme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """Open the page; what the console says and what is asked of any server is noted."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    noted: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: noted.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: noted.append(f"error: {error}"))
    tab.on("request", lambda request: noted.append(request.url))
    tab.goto(url)
    yield tab, noted
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_browser_loads_one_document_and_complains_of_nothing(
    browser: Browser, url: str, width: int, scheme: str
) -> None:
    with opened(browser, url, width, scheme) as (tab, noted):
        assert noted == [url]
        size = tab.evaluate("[document.documentElement.scrollWidth, getComputedStyle(document.body).margin]")
        assert size == [width, "0px"]  # nothing scrolls sideways; and the policy let our style sheet in


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_nothing(browser: Browser, url: str, width: int, scheme: str) -> None:
    axe = (npmcache.modules() / "axe-core" / "axe.min.js").read_text()
    with opened(browser, url, width, scheme) as (tab, _):
        tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        tab.evaluate(axe)  # past the page's policy, which lets no script in
        found = tab.evaluate("axe.run({resultTypes: ['violations']})")
        assert len(found["passes"]) > 20  # so that it looked at all
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_a_keyboard_reaches_every_link_and_opens_what_is_folded(browser: Browser, url: str) -> None:
    with opened(browser, url, 1280) as (tab, _):
        tab.evaluate("document.querySelectorAll('a, summary, pre').forEach((e, i) => e.dataset.at = i)")
        wanted = set(
            tab.evaluate(
                "[...document.querySelectorAll('a, summary, pre')].filter(e => e.checkVisibility()).map(e => e.dataset.at)"
            )
        )
        seen, outlines = [], []
        for _ in range(len(wanted) + 1):
            tab.keyboard.press("Tab")
            at, outline = tab.evaluate(
                "[document.activeElement.dataset.at, getComputedStyle(document.activeElement).outlineStyle]"
            )
            seen.append(at)
            outlines.append(outline)
        assert set(seen[: len(wanted)]) == wanted
        assert set(outlines[: len(wanted)]) == {"solid"}
        tab.locator("summary").first.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("details").first.evaluate("e => e.open")


def test_the_first_tab_skips_to_the_devices(browser: Browser, url: str) -> None:
    with opened(browser, url, 390) as (tab, _):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it shows itself
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "devices"


def draw(folder: Path) -> None:
    """Take the pictures of docs/images anew: `python tests/test_page.py docs/images`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, width, height in (("phone", 390, 1560), ("desktop", 1280, 1500)):
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            tab.set_content(whole())
            tab.screenshot(path=folder / f"market-{name}.png")
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
