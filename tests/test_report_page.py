"""The page in a browser with its network cut: everything is drawn, nothing is asked for, nobody's text runs, everybody can read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened, serious_faults
from madeup import MODELS, RTX_4090, card, node, report_of, session
from test_report import hostile, recorded

from harness.model import Report
from harness.render.report import view
from harness.render.report.page import page_html

_MOST_BYTES = 3_000_000
_REPORTS = 500
_SLOWER_MOST = 4  # than the page of one report, drawn by the same script


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as held:
        yield held


def gpus(*, hot: bool = False) -> Report:
    """Return a made-up node with one card, which may be hot."""
    own = card(RTX_4090, 2, power_limit_w=350.0)
    return report_of("madeup-gpu", (own, session(RTX_4090, own, 2 + hot, hot=hot)))


def fleet() -> list[Report]:
    """Return many reports: those of a dozen nodes, told by hundreds of others as their own."""
    made = [node(at, MODELS[at % 3], slow=0 if at == 7 else None, card_count=1) for at in range(12)]
    return [
        replace(one, node=replace(one.node, name=f"madeup-{at:03}"), seal=replace(one.seal, digest=f"{at:064x}"))
        for at, one in ((at, made[at % len(made)]) for at in range(_REPORTS))
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("pages"), {}
    sources: dict[str, list[Report]] = {
        "cpu": [recorded("cpu")],
        "emulated": [recorded("emulated")],
        "hostile": [hostile()],
        "pair": [gpus(), gpus(hot=True)],
        "fleet": fleet(),
    }
    for name, reports in sources.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(page_html(view(*reports)), encoding="utf-8")
    return found


PAGES = ("cpu", "emulated", "hostile", "pair", "fleet")


@pytest.mark.slow  # a browser opens the page, and axe reads it
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_network_and_draws_everything(browser: Any, pages: dict[str, Path], name: str) -> None:
    assert pages[name].stat().st_size < _MOST_BYTES
    with opened(browser, pages[name]) as seen:
        plots = seen.page.locator(".plot").count()
        assert seen.said == []
        assert seen.asked_for == [pages[name].as_uri()]
        assert seen.page.evaluate("document.documentElement.dataset.failed") == ""
        assert seen.page.evaluate("Number(document.documentElement.dataset.drawn)") == plots >= 3
        marks = seen.page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg .mark-symbol path, svg .mark-rect path, svg .mark-line path, svg .mark-rule line').length)"
        )
        assert len(marks) == plots
        assert min(marks) > 0
        levels = seen.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(below <= above + 1 for above, below in pairwise(levels))
        assert serious_faults(seen.page) == []


@pytest.mark.slow  # as above, in the dark, where contrast is another matter
def test_a_page_reads_well_on_a_phone_in_the_dark(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["pair"], width=390, dark=True) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        widths = seen.page.evaluate(
            "[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width)"
        )
        assert 250 < min(widths) <= max(widths) <= 390
        assert serious_faults(seen.page) == []


def test_a_hostile_report_is_inert(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["hostile"]) as seen:
        alerts: list[str] = []
        seen.page.on("dialog", lambda dialog: alerts.append(dialog.message))
        assert seen.page.locator("img").count() == 0
        assert seen.page.locator("script").count() == 3
        assert "alert(1)" in seen.page.locator("h1").text_content()
        point = seen.page.locator(".plot svg .mark-symbol path").first
        point.hover(force=True)  # a tooltip is made of a stranger's text, too
        seen.page.wait_for_selector("#vg-tooltip-element.visible")
        assert seen.page.locator("img").count() == 0
        assert alerts == []


def test_should_all_escaping_fail_the_page_still_runs_no_foreign_script(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "broken.html"
    injected = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\"></main>"
    page.write_text(pages["cpu"].read_text(encoding="utf-8").replace("</main>", injected, 1), encoding="utf-8")
    with opened(browser, page) as seen:
        assert seen.page.title() == "AMD EPYC: GPU assay"
        assert any("Content Security Policy" in said for said in seen.said)


def test_hundreds_of_reports_open_about_as_fast_as_one(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["cpu"]) as one:
        pass
    with opened(browser, pages["fleet"]) as many:
        assert f"{_REPORTS} reports" in many.page.locator("h1").text_content()
    print(f"{_REPORTS} reports: {pages['fleet'].stat().st_size} bytes, {many.ready_s:.2f} s; one: {one.ready_s:.2f} s")
    assert many.ready_s < _SLOWER_MOST * one.ready_s


def test_print_opens_the_tables(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["cpu"]) as seen:
        assert seen.page.locator("details:not([open])").count() > 3
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.locator("details:not([open])").count() == 0
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert seen.page.locator("details:not([open])").count() > 3
