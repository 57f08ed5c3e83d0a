"""What a device's own history is worth: jobs that ended as they should, and how much its speed moves from report to report.

Covers: no history is priced as a host that nobody verified, so leaving out a bad report pays less than a clean record; failures lower
the price in proportion; a speed that swings from report to report is worth less; one run sealed again and again is one run, and no report
vouches for itself or for one before it.
Does not cover: a new name for an old machine. It starts with no history, which is why none is not free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from harness.errors import MisuseError
from harness.model import Record, Report
from harness.scoring.capability import capability
from harness.scoring.cycles import whole_cycles_per_s
from harness.scoring.profiles import Profile
from harness.scoring.score import speed_of
from harness.scoring.tables import parameter

__all__ = ["Discount", "Episode", "episodes", "record_of", "reliability", "steadiness", "useful_share"]

_GOOD_STATES = frozenset({"valid", "power_capped", "thermally_limited"})
_HOUR_S = 3600
_FEWEST_SPEEDS = 2


class _End(NamedTuple):
    """How a job ended: well or not, and the tries before it that did not."""

    outcome_digest: str
    good_count: int
    bad_count: int


class Episode(NamedTuple):
    """What one report says of one device."""

    sealed_at: str
    report_digest: str
    ended: tuple[_End, ...]
    cycles_per_s: int | None


class Discount(NamedTuple):
    """A factor of a price, and its grounds."""

    times: Decimal
    basis: str


def episodes(history: Iterable[Report], profile: Profile) -> dict[str, tuple[Episode, ...]]:
    """Gather what reports say of each device, oldest first; the same report given twice counts once, and the order does not matter.

    An emulated report says nothing of a device.
    """
    seen = {report.seal.digest: report for report in history if not report.emulated}
    found: dict[str, list[Episode]] = {}
    for _, report in sorted(seen.items(), key=lambda one: (one[1].sealed_at, one[0])):
        ended = _ended(report)
        for can in capability(report):
            speed = speed_of(can, profile)
            found.setdefault(can.device_uuid, []).append(
                Episode(
                    sealed_at=report.sealed_at,
                    report_digest=report.seal.digest,
                    ended=tuple(ended[can.device_uuid]),
                    cycles_per_s=None if speed is None else whole_cycles_per_s(speed),
                )
            )
    return {uuid: tuple(own) for uuid, own in found.items()}


def record_of(report: Report, told: Sequence[Episode]) -> Record | None:
    """Return what a device's episodes say of it where a report is priced; None where there is none before that report.

    No report vouches for itself, and an outcome counts once, however often it was sealed anew.
    """
    if not told:
        return None
    known, counting = set(report.seal.outcomes), list[Episode]()
    good = bad = 0
    for one in told:
        fresh = [end for end in one.ended if end.outcome_digest not in known]
        if one.sealed_at >= report.sealed_at or not fresh:
            continue
        known.update(end.outcome_digest for end in fresh)
        good, bad = good + sum(end.good_count for end in fresh), bad + sum(end.bad_count for end in fresh)
        counting.append(one)
    if not counting:
        return None
    return Record(
        report_digests=tuple(sorted(one.report_digest for one in counting)),
        good_count=good,
        bad_count=bad,
        cycles_per_s=tuple(sorted(one.cycles_per_s for one in counting if one.cycles_per_s is not None)),
    )


def _ended(report: Report) -> dict[str, list[_End]]:
    """Tell by device how its jobs ended, and how often an earlier try at one did that its own failing cost. What was skipped is no evidence."""
    found: dict[str, list[_End]] = {}
    for outcome, digest in zip(report.outcomes, report.seal.outcomes, strict=True):
        held = outcome.measurement or outcome.failed
        if held is None:
            continue
        well = outcome.measurement is not None and outcome.measurement.state in _GOOD_STATES
        tries = sum(a.ended not in {"aborted", "contended", "late"} for a in outcome.attempts)
        found.setdefault(held.job.device_uuid, []).append(_End(digest, int(well), (not well) + tries))
    return found


def reliability(record: Record | None) -> Discount:
    """Return what is paid for a device with a record: that of an unverified host, up to that of a verified one, or as much less as fails."""
    unproven, strength = parameter("unproven"), parameter("record_strength")
    if record is None:
        return Discount(unproven, "assumed: no history given, as hosts rent that nobody verified")
    jobs = record.good_count + record.bad_count
    share = (record.good_count + strength * unproven) / (jobs + strength)
    basis = f"measured: {record.good_count} of {jobs} jobs in {len(record.report_digests)} reports ended well; "
    return Discount(share, f"{basis}shrunk by {strength} jobs towards {unproven}")


def steadiness(record: Record | None) -> Discount:
    """Return how much of its mean speed a device turned into work over its earlier reports: the harmonic over the plain mean.

    Time adds: a speed that swings by a tenth costs a hundredth. This report's own speed does not enter, so that it cannot be too fast.
    """
    if record is None or len(record.cycles_per_s) < _FEWEST_SPEEDS:
        return Discount(Decimal(1), "assumed: fewer than two earlier speeds to compare")
    speeds = record.cycles_per_s
    if not all(speeds):
        return Discount(Decimal(0), "measured: it once did no work at all")
    count = len(speeds)
    share = Fraction(count * count) / (sum(speeds) * sum((Fraction(1, speed) for speed in speeds), Fraction(0)))
    basis = f"measured: {count} earlier reports, from {min(speeds)} to {max(speeds)} cycles/s; harmonic over plain mean"
    return Discount(Decimal(share.numerator) / share.denominator, basis)


def useful_share(interruptions_per_hour: Decimal, checkpoint_s: int, restart_s: int) -> Discount:
    """Return the share of rented time that becomes work where a job is stopped now and then: half a checkpoint and a restart are lost.

    Raises:
        MisuseError: one of them is negative.
    """
    if interruptions_per_hour < 0 or checkpoint_s < 0 or restart_s < 0:
        message = (
            f"{interruptions_per_hour} interruptions an hour, {checkpoint_s} s, {restart_s} s: each should be 0 or more"
        )
        raise MisuseError(message)
    lost_s = Decimal(checkpoint_s) / 2 + restart_s
    share = max(1 - interruptions_per_hour * lost_s / _HOUR_S, Decimal(0))
    basis = f"given: {interruptions_per_hour} interruptions an hour, each of half of {checkpoint_s} s and {restart_s} s"
    return Discount(share, basis)
