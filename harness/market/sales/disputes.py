"""Was what was promised delivered? A benchmark that is run again, with a seed that nobody knew, and a rule that stood in the offer.

    supports      the claim: the re-benchmark's upper bound is below the promised floor x (1 - tolerance), by enough validators
    contradicts   it: the lower bounds reach that floor, by so many that there can't be enough
    inconclusive  neither

Promised: the rule, its floor and its tolerance are those whose hash was signed in the offer; the seed is drawn after the claim was paid for.
Not promised: that a verdict on today's speed is one on last week's. A pass now does not prove the past, and no verdict says that it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from harness.errors import ForgeryError, MisuseError
from harness.market.offers.evidence import hashed
from harness.model import Report
from harness.scoring.profiles import profile_of
from harness.scoring.score import score
from harness.strangers import loads

__all__ = ["Finding", "Judgement", "Promise", "finding", "judge", "promise_of", "refund_atomic"]

Says = Literal["supports", "contradicts", "inconclusive"]
_CYCLES = 10**6  # of the reference node in a second
_METRIC = "cycles_per_s"
_CAVEAT = "of the device as it was when it was measured again, which does not prove what it did during the lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What an offer's `slaHash` stands for."""

    profile: str
    floor_cycles_per_s: int
    tolerance: Fraction
    validators: int
    agreeing: int

    @property
    def least_cycles_per_s(self) -> Fraction:
        """The speed below which it is broken."""
        return self.floor_cycles_per_s * (1 - self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one re-benchmark saw: the bounds of the speed, None where it gives none, and the report."""

    low_cycles_per_s: Fraction | None
    high_cycles_per_s: Fraction | None
    report: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What re-benchmarks say of a buyer's claim that a promise was broken."""

    verdict: Says
    measured_cycles_per_s: int | None  # the upper bound most in the seller's favour, where the claim is supported
    reports: tuple[str, ...]
    reason: str


def promise_of(document: bytes, sla_hash: str) -> Promise:
    """Read what was promised.

    Raises:
        ForgeryError: the document does not have the hash that was signed.
        MisuseError: nothing was promised that can be measured again.
    """
    if hashed(document) != sla_hash:
        what = f"this is not the promise {sla_hash}"
        raise ForgeryError(what)
    told = loads(document)
    if told.get("metric") != _METRIC or told.get("floor") is None:
        message = "the offer promised no speed that could be measured again"
        raise MisuseError(message)
    return Promise(
        profile=told["profile"],
        floor_cycles_per_s=int(told["floor"]),
        tolerance=Fraction(told["tolerance"]),
        validators=told["validators"],
        agreeing=told["agreeing"],
    )


def finding(report: Report, device_uuid: str, promise: Promise) -> Finding | None:
    """Return what a report saw of a device; None where it has nothing of it."""
    found = [one for one in score(report, profile=profile_of(promise.profile)) if one.device_uuid == device_uuid]
    if not found:
        return None
    low, high = found[0].cycles_per_s, found[0].high_cu_per_hour
    return Finding(
        low_cycles_per_s=None if low is None or found[0].emulated else Fraction(low),
        high_cycles_per_s=None if high is None or found[0].emulated else Fraction(high) * _CYCLES,
        report=found[0].report_digest,
    )


def judge(promise: Promise, findings: Sequence[Finding]) -> Judgement:
    """Apply the rule. Which validators were first does not matter, and one that saw nothing counts for neither side."""
    least = promise.least_cycles_per_s
    broken = [one for one in findings if one.high_cycles_per_s is not None and one.high_cycles_per_s < least]
    kept = [one for one in findings if one.low_cycles_per_s is not None and one.low_cycles_per_s >= least]
    reports = tuple(one.report for one in findings)
    if len(broken) >= promise.agreeing:
        best = max(one.high_cycles_per_s for one in broken if one.high_cycles_per_s is not None)
        said = f"{len(broken)} of {promise.validators} upper bounds are below {float(least):.6g} cycles/s, {_CAVEAT}"
        return Judgement(verdict="supports", measured_cycles_per_s=int(best), reports=reports, reason=said)
    if len(kept) > promise.validators - promise.agreeing:
        said = f"{len(kept)} of {promise.validators} lower bounds reach {float(least):.6g} cycles/s, {_CAVEAT}"
        return Judgement(verdict="contradicts", measured_cycles_per_s=None, reports=reports, reason=said)
    said = f"neither do {promise.agreeing} of {promise.validators} upper bounds fall below {float(least):.6g} cycles/s, nor do the lower bounds reach it"
    return Judgement(verdict="inconclusive", measured_cycles_per_s=None, reports=reports, reason=said)


def refund_atomic(captured_atomic: int, promise: Promise, judgement: Judgement) -> int:
    """Return what is due back, in atoms: captured x (1 - measured / promised), rounded down, and nothing where the claim is not supported."""
    if judgement.verdict != "supports" or judgement.measured_cycles_per_s is None:
        return 0
    missing = 1 - Fraction(judgement.measured_cycles_per_s, promise.floor_cycles_per_s)
    return min(int(captured_atomic * max(missing, Fraction(0))), captured_atomic)


def plain(judgement: Judgement) -> Mapping[str, Any]:
    """Return a judgement as JSON has it."""
    measured = judgement.measured_cycles_per_s
    return {
        "verdict": judgement.verdict,
        "measured_cycles_per_s": None if measured is None else str(measured),
        "reports": list(judgement.reports),
        "reason": judgement.reason,
    }
