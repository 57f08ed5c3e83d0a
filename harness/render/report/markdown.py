"""The report as Markdown, short enough for a pull request. A stranger's text is escaped: it makes no link, no image and no mention."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.render.report.views import DeviceView, FleetView, NodeView, Page
from harness.render.report.words import money, number, visible

__all__ = ["page_markdown"]

_MARK = re.compile(r"([\\`*_{}\[\]<>#|~!@])")
_ROWS_MOST = 80


def page_markdown(page: Page) -> str:
    """Return the page as Markdown."""
    parts = [f"# {_safe(page.title)}", f"_{_safe(page.made_by)}_"]
    if page.fleet is not None:
        parts += _fleet(page.fleet)
    for node in page.nodes:
        parts += _node(node)
    return "\n\n".join(parts) + "\n"


def _safe(text: str) -> str:
    return _MARK.sub(r"\\\1", visible(text))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [head, ["---"] * len(head), *([_safe(cell) for cell in row] for row in rows[:_ROWS_MOST])]
    drawn = "\n".join("| " + " | ".join(row) + " |" for row in shown)
    left = len(rows) - _ROWS_MOST
    return drawn if left <= 0 else f"{drawn}\n\n{left} more rows."


def _fleet(fleet: FleetView) -> Iterator[str]:
    yield f"**{_safe(fleet.headline)}**"
    if fleet.ill:
        rows = [(c.node, c.name, c.card, "; ".join(c.ill), "; ".join(c.causes)) for c in fleet.ill]
        yield _table(("node", "model", "device", "found", "may explain it"), rows)
    if fleet.side_by_side:
        head, *beside = fleet.side_by_side
        yield _table([_safe(name) for name in head], beside)
    if fleet.comparisons:
        told = [
            (c.benchmark, " ".join(f"{k}={v}" for k, v in c.params.items()), "" if c.change_fraction is None else f"{c.change_fraction:+.1%}", c.decision.replace("_", " "), c.reason)
            for c in fleet.comparisons
        ]  # fmt: skip
        yield _table(("benchmark", "parameters", "speed", "decision", "reason"), told)


def _node(node: NodeView) -> Iterator[str]:
    yield f"## Node {_safe(node.node)}"
    yield f"{_safe(node.seal.headline)}."
    for proof in node.proofs:
        yield f"{_safe(proof.device)}: {_safe(proof.headline)}."
    for device in node.devices:
        yield from _device(device)


def _device(device: DeviceView) -> Iterator[str]:
    yield f"### {_safe(device.title)}"
    yield f"**{_safe(device.verdict.headline)}**"
    if device.verdict.findings:
        yield "\n".join(f"- {_safe(f.sentence)}" for f in device.verdict.findings)
    scores = [(s.profile, f"{number(s.cu_per_hour)} {s.unit}", s.said) for s in device.standings if s.cu_per_hour]
    if scores:
        yield _table(("workload", "score", "standing"), scores)
    results = [(r.benchmark, r.params, r.value, r.noise, r.energy, r.state) for r in device.results]
    if results:
        yield _table(("benchmark", "parameters", "value", "±", "energy", "state"), results)
    if device.bill is not None:
        yield _safe(device.bill.said)
        if device.bill.lines:
            yield _table(("line", "an hour"), [(line.name, money(line.usd_per_hour)) for line in device.bill.lines])
