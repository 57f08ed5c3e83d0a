"""The verdict on a device, in words that an operator can act on: each follows from a state, a note, a peer or a published range.

Where the report does not tell why something is slow, the verdict says that it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness.model import Device, Measurement, Note, Outcome, State
from harness.render.report.standing import FAMILIES, against_middle
from harness.render.report.views import Finding, Tone, VerdictView
from harness.render.report.words import percent, tame
from harness.scoring.fleet import Card
from harness.scoring.placement import Placement, gate, no_public_numbers

__all__ = ["Evidence", "tone_of", "verdict"]

_TOLD = 3  # findings in the headline; all are in the list below it
_ENOUGH = 3  # cards of a kind, to call one of them off
_TONES: dict[str, Tone] = {
    "valid": "good",
    "power_capped": "good",
    "thermally_limited": "fair",
    "noisy": "fair",
    "drifting": "fair",
    "not_steady": "fair",
    "skipped": "plain",
}
_RESTLESS: tuple[State, ...] = ("noisy", "drifting", "not_steady")
_CAPPED = "at its power limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a verdict on one device follows from."""

    device: Device
    emulated: bool
    outcomes: tuple[Outcome, ...]
    notes: tuple[Note, ...]
    card: Card
    placed: tuple[Placement, ...]
    peer_count: int  # cards of its model in all reports, itself among them
    against_peers: float | None  # the median over its results of how far it is above its kind

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """The measurements among the outcomes."""
        return tuple(o.measurement for o in self.outcomes if o.measurement)


def tone_of(state: str) -> Tone:
    """Return how a state is to be read; one that is not known is a failure."""
    return _TONES.get(state, "bad")


def verdict(seen: Evidence) -> VerdictView:
    """Return the verdict on a device: a word, the findings that matter most, and then all of them."""
    order = {"bad": 0, "fair": 1, "good": 2, "plain": 3}
    findings = sorted((_begun(f) for f in _findings(seen) if f), key=lambda f: order[f.tone])
    word, tone = _word(seen, findings)
    shorts = [f.short for f in findings if f.short][:_TOLD]
    return VerdictView(tone=tone, word=word, headline="; ".join([word, *shorts]), findings=tuple(findings))


def _begun(finding: Finding) -> Finding:
    said = finding.sentence
    return replace(finding, sentence=said[:1].upper() + said[1:])


def _word(seen: Evidence, findings: Sequence[Finding]) -> tuple[str, Tone]:
    ill = any(f.tone == "bad" for f in findings)
    if seen.emulated:
        return "Emulated: this shows that the code runs, not how fast a device is", "bad" if ill else "plain"
    if ill:
        return "Ill", "bad"
    if not seen.measured:
        return "Not measured", "plain"
    if any(f.tone == "fair" and not f.short.startswith("restless") for f in findings):
        return "Works, with something to look at", "fair"
    return "Healthy", "fair" if any(f.tone == "fair" for f in findings) else "good"


def _findings(seen: Evidence) -> Iterator[Finding | None]:
    for reason in seen.card.ill:
        yield Finding(tone="bad", short=tame(reason, 120), sentence=_because(tame(reason), seen.card.causes))
    yield from _notes(seen)
    if not seen.emulated:
        yield from _against_kind(seen)
        yield from _slow_parts(seen)
        yield from _gates(seen)
        yield from _no_peers(seen)
    yield from _states(seen)
    yield _coverage(seen)


def _because(what: str, causes: Sequence[str]) -> str:
    told = "; ".join(tame(c) for c in causes)
    if told:
        return f"{what}. May explain it: {told}."
    return f"{what}. Nothing in this report explains it." if " median of its " in what else f"{what}."


def _notes(seen: Evidence) -> Iterator[Finding]:
    for note in seen.notes:
        if note.severity == "refuse" and note.what in seen.card.ill:
            continue
        tone: Tone = {"refuse": "bad", "tag": "fair", "info": "plain"}[note.severity]  # type: ignore[assignment]
        short = tame(note.what, 120) if tone != "plain" else ""
        yield Finding(tone=tone, short=short, sentence=f"{tame(note.what)}. To mend it: {tame(note.advice)}.")


def _against_kind(seen: Evidence) -> Iterator[Finding]:
    """Say where it lies among its kind: those in these reports, where there are enough, and those of whom others published."""
    if seen.against_peers is not None and seen.peer_count >= _ENOUGH:
        said = f"{_side(seen.against_peers)} the median of its kind"
        yield Finding(tone="plain", short=said, sentence=f"{said} in these reports ({seen.peer_count} cards).")
    middle = against_middle(seen.placed)
    if middle is not None:
        said = f"{_side(middle)} the middle of what others published of its model"
        sentence = f"{said}: the median over {len(seen.placed)} results that can be compared."
        yield Finding(tone="plain", short=said, sentence=sentence)


def _side(change: float) -> str:
    word = "over" if change > 0 else "under"
    return f"{percent(abs(change))} {word}"


def _slow_parts(seen: Evidence) -> Iterator[Finding]:
    """Name each part of the card that is below all published results of its model, with the cause where one is known."""
    for family, quantities in FAMILIES.items():
        below = [p for p in seen.placed if p.lies == "below" and p.quantity.split()[0] in quantities]
        if not below:
            continue
        worst = min(below, key=lambda p: p.value_per_s / p.low_per_s)
        slow = f"{family} {percent(1 - worst.value_per_s / worst.low_per_s)} slow"
        advice = _advice(seen, worst)
        yield Finding(
            tone="fair", short=f"{slow}: {advice}", sentence=f"{tame(worst.sentence)}. {advice.capitalize()}."
        )


def _advice(seen: Evidence, slow: Placement) -> str:
    limit_w, default_w = seen.device.power_limit_w, seen.device.power_default_limit_w
    if limit_w is not None and default_w is not None and limit_w < default_w:
        return f"check the power limit, {limit_w:.0f} of {default_w:.0f} W"
    states = Counter(m.state for m in seen.measured if m.job.params == slow.params)
    if states["thermally_limited"] or states["throttled"]:
        return "check the cooling: it was held back by heat or power supply"
    if states["power_capped"]:
        return f"it ran {_CAPPED}"
    if seen.device.ecc_enabled and slow.quantity.split()[0] in FAMILIES["memory"]:
        return "ECC is on, which may cost some of it; this report does not tell more"
    return "this report does not tell why"


def _gates(seen: Evidence) -> Iterator[Finding]:
    for m in seen.measured:
        said = gate(m)
        if said:
            yield Finding(tone="fair", short="", sentence=f"{tame(said)}.")


def _no_peers(seen: Evidence) -> Iterator[Finding | None]:
    missing = no_public_numbers(seen.device)
    if missing:
        yield Finding(tone="plain", short="", sentence=f"{tame(missing)}: its results are compared with none.")
    if seen.device.kind == "cpu":
        told = "A CPU: no results of its kind are published here, so nothing says whether it is fast for what it is."
        yield Finding(tone="plain", short="", sentence=told)
    yield from (Finding(tone="plain", short="", sentence=f"{tame(r)}.") for r in seen.card.remarks)


def _states(seen: Evidence) -> Iterator[Finding]:
    counts, total = Counter(m.state for m in seen.measured), len(seen.measured)
    capped, hot = counts["power_capped"], counts["thermally_limited"]
    if capped:
        said = f"{capped} of {total} results were taken {_CAPPED}: a card under load is meant to run there."
        yield Finding(tone="plain", short="", sentence=said)
    if hot:
        said = f"heat held it back in {hot} of {total} results"
        yield Finding(tone="fair", short=said, sentence=f"{said}: that is its sustained speed in this case and room.")
    restless = sum(counts[s] for s in _RESTLESS)
    if restless:
        said = f"restless: {restless} of {total} results vary more than wanted"
        cause = "something else used the machine, or its clock moved. Their intervals are wide and honest; a longer preset narrows them"
        yield Finding(tone="fair", short=said, sentence=f"{said}: {cause}.")


def _coverage(seen: Evidence) -> Finding | None:
    skipped = [o.skipped for o in seen.outcomes if o.skipped]
    total = len(seen.outcomes)
    if not total:
        return None
    first = f"; {len(skipped)} could not run here, the first because: {tame(skipped[0].reason)}" if skipped else ""
    good = len(seen.measured)
    return Finding(tone="plain", short="", sentence=f"{good} of {total} planned points have a result{first}.")
