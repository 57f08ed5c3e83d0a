"""What a device's own history is worth: jobs that ended as they should, and how much its speed moves from report to report.

Covers: no history is priced as a host that nobody verified, so leaving out a bad report pays less than a clean record; failures lower
the price in proportion; a speed that swings from report to report is worth less.
Does not cover: a new name for an old machine. It starts with no history, which is why none is not free.
"""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["Discount", "record_of", "reliability", "steadiness", "useful_share"]

_GOOD_STATES = frozenset({"valid", "power_capped", "thermally_limited"})
_HOUR_S = 3600
_FEWEST_SPEEDS = 2


class Discount(NamedTuple):
    """A factor of a price, and its grounds."""

    times: Decimal
    basis: str


def record_of(device_uuid: str, history: Sequence[Report], profile: Profile) -> Record | None:
    """Gather what a device's reports say of it; None where none of them has it.

    The same report given twice counts once; the order does not matter.
    """
    seen = {report.seal.digest: report for report in history if any(d.uuid == device_uuid for d in report.devices)}
    if not seen:
        return None
    good = bad = 0
    speeds: list[int] = []
    for _, report in sorted(seen.items()):
        more_good, more_bad = _ended(report, device_uuid)
        good, bad = good + more_good, bad + more_bad
        for found in capability(report):
            speed = speed_of(found, profile) if found.device_uuid == device_uuid else None
            speeds += [] if speed is None else [whole_cycles_per_s(speed)]
    return Record(
        report_digests=tuple(sorted(seen)), good_count=good, bad_count=bad, cycles_per_s=tuple(sorted(speeds))
    )


def _ended(report: Report, device_uuid: str) -> tuple[int, int]:
    """Count a device's jobs by how they ended, and each earlier try at one that its own failing cost. What was skipped is no evidence."""
    good = bad = 0
    for outcome in report.outcomes:
        held = outcome.measurement or outcome.failed
        if held is None or held.job.device_uuid != device_uuid:
            continue
        well = outcome.measurement is not None and outcome.measurement.state in _GOOD_STATES
        good, bad = (
            good + well,
            bad + (not well) + sum(a.ended not in {"aborted", "contended", "late"} for a in outcome.attempts),
        )
    return good, bad


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
