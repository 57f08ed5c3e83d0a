"""From reports to the page's view: who is shown in detail, who in sums, and what is known of each from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.model import Report
from harness.render.report.device import Peers, device_view
from harness.render.report.fleet import Member, deviations, fleet_view
from harness.render.report.proofs import proofs_of
from harness.render.report.trust import trust
from harness.render.report.views import Fact, NodeView, Page, ProofView
from harness.render.report.words import tame
from harness.scoring.capability import capability
from harness.scoring.fleet import Fleet, fleet
from harness.scoring.price import quote

__all__ = ["DETAILED_MOST", "page_of"]

DETAILED_MOST = 8  # devices that are shown one by one; of more, what they have in common and what stands out


def page_of(reports: Sequence[Report], made_by: str, proofs: Sequence[str | Path] = ()) -> Page:
    """Return the view of one or several reports, with transcripts of challenges to their devices; a report given twice counts once.

    Raises:
        MisuseError: a transcript is about none of the devices.
        ForgeryError: a seal does not name each outcome, or a transcript is none.
    """
    distinct = list({r.seal.digest: r for r in reports}.values())
    judged, proven = fleet(distinct), proofs_of(proofs, distinct)
    device_count = sum(len(r.devices) for r in distinct)
    few = device_count <= DETAILED_MOST
    names = _names(distinct)
    members = [m for name, r in zip(names, distinct, strict=True) for m in _members(name, r, priced=few)]
    nodes = (
        tuple(
            _node(i, name, r, judged, members, proven.get(r.seal.digest, ()))
            for i, (name, r) in enumerate(zip(names, distinct, strict=True))
        )
        if few
        else ()
    )
    together = device_count > 1 and (len(members) > 1 or not nodes)
    return Page(
        title=_title(distinct, len(judged.cards)),
        made_by=made_by,
        nodes=nodes,
        fleet=fleet_view(distinct, judged, members) if together else None,
    )


def _title(reports: Sequence[Report], device_count: int) -> str:
    if len(reports) > 1:
        nodes = len({r.node.name for r in reports})
        return f"{len(reports):,} reports: {device_count:,} device{'' if device_count == 1 else 's'} on {nodes:,} node{'' if nodes == 1 else 's'}"
    names = list(dict.fromkeys(tame(d.name, 60) for d in reports[0].devices))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""  # noqa: PLR2004 - as many as a title holds
    return f"{', '.join(names[:2])}{more}: GPU assay"


def _names(reports: Sequence[Report]) -> list[str]:
    """Return what each report is called by: its node, and which of that node's reports it is where there are several."""
    counts, seen = Counter(r.node.name for r in reports), Counter[str]()
    names = []
    for r in reports:
        seen[r.node.name] += 1
        which = f", report {seen[r.node.name]}" if counts[r.node.name] > 1 else ""
        names.append(f"{tame(r.node.name, 60)}{which}")
    return names


def _members(name: str, report: Report, *, priced: bool) -> list[Member]:
    selectors = {d.uuid: d.selector for d in report.devices}
    quotes = {q.device_uuid: q for q in quote(report)} if priced else {}
    return [Member(name, selectors[c.device_uuid], c, quotes.get(c.device_uuid)) for c in capability(report)]


def _node(  # noqa: PLR0913 - a report, and what the others say of it
    at: int, name: str, report: Report, judged: Fleet, members: Sequence[Member], proofs: tuple[ProofView, ...]
) -> NodeView:
    own = {m.seen.device_uuid: m for m in members if m.seen.report_digest == report.seal.digest}
    far = deviations(members)
    cards = {c.device_uuid: c for c in judged.cards if c.node == report.node.name}
    views = []
    for i, device in enumerate(report.devices):
        count, change = far.get((report.seal.digest, device.uuid), (1, None))
        peers = Peers(card=cards[device.uuid], peer_count=count, deviation_fraction=change)
        anchor, member = f"device-{at}-{i}", own.get(device.uuid)
        seen, price = (member.seen, member.quote) if member else (None, None)
        views.append(device_view(report, device, anchor, seen=seen, quote=price, peers=peers))
    return NodeView(
        node=name,
        created_at=tame(report.created_at, 40),
        emulated=report.emulated,
        facts=tuple(_surroundings(report)),
        seal=trust(report),
        proofs=proofs,
        devices=tuple(views),
    )


def _surroundings(report: Report) -> list[Fact]:
    known = report.environment
    told: dict[str, object] = {
        "measured": report.created_at,
        "preset": report.preset,
        "harness": known.harness_version,
        "Python": known.python,
        "system": known.os,
        "processors allowed": known.cpu_limit_count,
        "load before it": known.load_average_1min,
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(known.packages.items())),
    }
    return [Fact(name, tame(value)) for name, value in told.items() if value not in {None, ""}]
