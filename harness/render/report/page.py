"""The page: one file that needs nothing else, and the package's only door to Jinja and to the drawing library.

Covers: a hostile report. Whatever it says is text: escaped in the markup, in the data of the drawings, and, should both fail, not run, for
the page's policy allows the one script that was made here, by its digest, and no request to anywhere.
Does not cover: that what it says is true.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import FailureError
from harness.render.report.bill_plot import bill_figure
from harness.render.report.figure import CONFIG, Figure
from harness.render.report.fleet_plots import fleet_figures
from harness.render.report.roof_plot import roof_figure
from harness.render.report.rounds_plot import rounds_figure
from harness.render.report.score_plot import standing_figure
from harness.render.report.stairs_plot import stairs_figure
from harness.render.report.tables import energy_figure
from harness.render.report.trace_plot import trace_figure
from harness.render.report.views import DeviceView, Fact, NodeView, Page
from harness.render.report.words import money, number, shown, visible

__all__ = ["page_html"]

_ASSETS = Path(__file__).parent / "assets"
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_HYPHEN = "\N{NON-BREAKING HYPHEN}"
_NO_EXTRA = "an HTML report needs the extra `report`: pip install 'gpu-assay[report]'"


class Drawn(NamedTuple):
    """A figure with the ids of the elements that it is drawn in."""

    id: str
    level: int  # of its heading
    figure: Figure
    panels: tuple[str, ...]


class Column(NamedTuple):
    """A column of the table of results."""

    title: str
    field: str


_COLUMNS = (
    Column("benchmark", "benchmark"),
    Column("parameters", "params"),
    Column("value", "value"),
    Column("95 % interval", "interval"),
    Column("±", "noise"),
    Column("clock", "clock"),
    Column("of its ceiling", "reached"),
    Column("energy", "energy"),
    Column("state", "state"),
)


def page_html(page: Page) -> str:
    """Return the whole page as one HTML document.

    Raises:
        FailureError: the extra `report` is not installed.
    """
    environment, script = _environment(), _script()
    fleet = [] if page.fleet is None else list(_drawn("fleet", 3, list(fleet_figures(page.fleet))))
    nodes = [_node(i, node) for i, node in enumerate(page.nodes)]
    every = [*fleet, *(d for node in nodes for device in node["devices"] for d in device["figures"])]
    specs = [(name, spec) for d in every for name, spec in zip(d.panels, d.figure.panels, strict=True)]
    safe = environment.markup
    written: str = environment.template.render(
        page=page,
        fleet=page.fleet,
        fleet_figures=fleet,
        nodes=nodes,
        links=tuple(_links(page)),
        style=safe(_asset("style.css")),
        config=safe(_data(CONFIG)),
        specs=safe(_data(specs)),
        script=safe(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    return written


def _links(page: Page) -> Iterator[tuple[str, str]]:
    if page.fleet is not None:
        yield "Fleet" if not page.nodes else "Side by side", "fleet"
    many = len(page.nodes) > 1
    for i, node in enumerate(page.nodes):
        for device in node.devices:
            yield f"{node.node} {device.selector}" if many else device.title, device.anchor
        yield f"{node.node} seal" if many else "Seal and proof", f"node-{i}-seal"


def _node(at: int, node: NodeView) -> dict[str, Any]:
    return {"id": f"node-{at}", "view": node, "devices": [_device(device) for device in node.devices]}


def _device(device: DeviceView) -> dict[str, Any]:
    figures = (
        standing_figure(device.standings) if device.standings else None,
        bill_figure(device.bill) if device.bill else None,
        roof_figure(device.roof),
        stairs_figure(device.stairs),
        rounds_figure(device.rounds),
        trace_figure(device.trace),
        energy_figure(device.energy, device.no_energy),
    )
    said = [
        c for c in _COLUMNS if c.field in {"benchmark", "state"} or any(getattr(r, c.field) for r in device.results)
    ]
    found = [f for f in figures if f is not None]
    return {
        "view": device,
        "figures": list(_drawn(device.anchor, 4, found)),
        "columns": said,
        "tiles": list(_tiles(device)),
    }


def _tiles(device: DeviceView) -> Iterator[Fact]:
    """Yield what a buyer looks at first."""
    general = next((s for s in device.standings if s.profile == "general"), None)
    if general and general.cu_per_hour:
        yield Fact("score, general", f"{number(general.cu_per_hour)} {general.unit}".replace("-", _HYPHEN))
    if device.bill and device.bill.price_usd_per_hour is not None:
        yield Fact("an hour of it", money(device.bill.price_usd_per_hour))
    mark = ", emulated" if device.emulated else ""
    if device.roof.bytes_per_s:
        yield Fact(f"memory{mark}", shown(device.roof.bytes_per_s, "B/s"))
    yield from (Fact(f"{p.dtype}{mark}", shown(p.flops_per_s, "FLOP/s")) for p in device.roof.peaks[:3])


def _drawn(prefix: str, level: int, figures: Sequence[Figure]) -> Iterator[Drawn]:
    for i, figure in enumerate(figures):
        name = f"{prefix}-figure-{i}"
        yield Drawn(name, level, figure, tuple(f"{name}-{j}" for j in range(len(figure.panels))))


def _data(value: Any) -> str:
    """Return JSON that stays data wherever in a page it stands."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED)


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


class _Environment(NamedTuple):
    template: Any
    markup: Any  # what marks a text as markup of our own


def _environment() -> _Environment:
    try:
        import jinja2
        import markupsafe
    except ImportError as err:
        raise FailureError(_NO_EXTRA) from err

    def finalize(value: Any) -> Any:
        """Make a text visible that somebody forgot to tame; markup is ours."""
        return visible(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=finalize
    )
    return _Environment(environment.from_string(_asset("page.html")), markupsafe.Markup)


@cache
def _script() -> str:
    """Return the drawing library with our few lines, as one script; nothing of it depends on a report."""
    try:
        import vl_convert
    except ImportError as err:
        raise FailureError(_NO_EXTRA) from err
    bundle: str = vl_convert.javascript_bundle(_asset("draw.js"))
    # What would end the element, or open a comment in it, can only stand in a string or a pattern, where a backslash changes nothing.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
