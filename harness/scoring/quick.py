"""Report files read fast: held to the same digests and signature, without spelling every number out again.

A report's canonical bytes are those of its head with the outcomes spliced in, so the file's own bytes, sliced, are what the digests were
taken of. Whatever does not fit at once goes the long way, which says what is wrong and where.

Covers: a byte that was changed since the report was sealed; who signed it; outcomes of no planned job or of no device; intervals that do
not follow from their raw times; numbers and lists that no document may hold; dates, watts, joules and sizes that nobody can have measured.
Does not cover: a document that its own maker spelled in a second way before sealing it, or a chain of reports: `harness verify` judges those.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median, stdev
from typing import TypeVar

import msgspec

from harness import codec, strangers, units
from harness.errors import ForgeryError, MisuseError
from harness.model import Job, Measurement, Outcome, Report
from harness.proof.limits import head_faults, number_faults
from harness.stats import CONFIDENCE, interval, step

__all__ = ["bytes_of", "canonical", "load_fast", "spell", "unspell"]

T = TypeVar("T")

_ROUNDING = 1e-9  # relative, as where reports are verified
_SHORTEST_S, _LONGEST_S = 1e-15, 1e9  # as where reports are verified
_SPREAD = 2  # values that a spread needs
_OPENS = b'"outcomes":['
_SEAL = b'"seal":{'
_DIGEST = re.compile(rb'"digest":"[0-9a-f]{64}"')
_SIGNATURE = re.compile(rb'"signature":"[0-9a-f]*"')


class _Sliced(msgspec.Struct):
    """A report whose outcomes are left as bytes."""

    outcomes: tuple[msgspec.Raw, ...]


_WHOLE = re.compile(rb"(?<=[:\[,])(-?\d+)\.0(?=[,\]}])")
_PERHAPS_WHOLE = re.compile(rb"\.0[,\]}]")  # begins with what is rare, so that it is found ten times as fast
# Whole numbers of sixteen digits may be beyond what JSON holds exactly: the long way tells. All digits are made one, and all that may stand before one.
_DIGITS = bytes.maketrans(b"123456789 \t\r\n-", b"000000000:::::")
_TOO_LONG = b":" + b"0" * 16
_WRITER = msgspec.json.Encoder(order="sorted")
_SLICER = msgspec.json.Decoder(_Sliced)
_READER = msgspec.json.Decoder(Report, strict=True)


def load_fast(source: bytes | Path) -> Report | None:
    """Return a report from its bytes or its file; None where it has to be read the long way.

    Raises:
        MisuseError: there is no such file.
    """
    data = source if isinstance(source, bytes) else bytes_of(source)
    if len(data) > codec.MAX_BYTES:
        return None
    try:
        parts = [bytes(raw) for raw in strangers.decode_by(data, _SLICER).outcomes]
        report = strangers.decode_by(data, _READER)
    except msgspec.MsgspecError:
        return None
    head = _head_of(data, parts)
    if head is None or hashlib.sha256(head).hexdigest() != report.seal.digest:
        return None
    if _TOO_LONG in data.translate(_DIGITS) or any(map(_is_crowded, (head, *parts))):
        return None
    if tuple(hashlib.sha256(part).hexdigest() for part in parts) != report.seal.outcomes:
        return None
    return report if _is_signed(report) and _is_sound(report) else None


def canonical(record: object, digest: str) -> bytes:
    """Return the canonical bytes of a record whose digest is known: those of a fast writer where they have it.

    Raises:
        ForgeryError: the record does not have that digest.
    """
    fast = spell(record)
    data = fast if hashlib.sha256(fast).hexdigest() == digest else codec.encode(record)
    if data is not fast and hashlib.sha256(data).hexdigest() != digest:
        what = f"it is not the {type(record).__name__.lower()} that the seal names, {digest[:8]}"
        raise ForgeryError(what)
    return data


def spell(record: object) -> bytes:
    """Return the bytes of a record that give it back exactly: the canonical ones, but where a number or a text is a rare one."""
    data = _WRITER.encode(record)
    return _WHOLE.sub(rb"\1", data) if _PERHAPS_WHOLE.search(data) else data


def unspell(data: bytes, kind: type[T]) -> T:
    """Return a record from what `spell` gave of it, or from its canonical bytes.

    Raises:
        ForgeryError: they are neither; says what and where.
    """
    try:
        record = strangers.decode(data, kind)
    except msgspec.MsgspecError:
        return codec.decode(data, kind)
    return record if spell(record) == data else codec.decode(data, kind)


def bytes_of(path: Path) -> bytes:
    """Return the bytes of a file, or of one that is larger than a document may be enough to be refused.

    Raises:
        MisuseError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(codec.MAX_BYTES + 1)
    except OSError as err:
        message = f"cannot read {str(path)!r}: {err.strerror}"
        raise MisuseError(message) from err


def _is_crowded(part: bytes) -> bool:
    """Tell whether a part of a report may hold an array that is longer than one may be: an element takes two bytes and a comma."""
    return len(part) > 2 * codec.MAX_ELEMENTS and part.count(b",") >= codec.MAX_ELEMENTS


def _head_of(data: bytes, parts: Sequence[bytes]) -> bytes | None:
    """Return the bytes that the seal's own digest is of: without outcomes, digest and signature."""
    body = b",".join(parts)
    begins = data.find(_OPENS) + len(_OPENS)
    ends = begins + len(body)
    at = data.rfind(_SEAL)
    if data[begins:ends] != body or data[ends : ends + 1] != b"]" or at < ends:
        return None
    tail, one = _DIGEST.subn(b'"digest":""', data[at:], count=1)
    return data[:begins] + data[ends:at] + _SIGNATURE.sub(b'"signature":null', tail, count=1) if one else None


def _is_signed(report: Report) -> bool:
    """Tell whether the seal is what it says: signed by its key, or unsigned and without one."""
    seal = report.seal
    if seal.algorithm == "unsigned":
        return seal.public_key is None and seal.signature is None
    from harness.proof.signing import is_signed_by  # brings the signature library

    return bool(seal.public_key and seal.signature and is_signed_by(seal.public_key, seal.digest, seal.signature))


def _is_sound(report: Report) -> bool:
    devices = {device.uuid for device in report.devices}
    planned = set(map(_key, report.plan))
    done = [_key(job) for outcome in report.outcomes if (job := _job_of(outcome))]
    return (
        not any(head_faults(report))
        and len(devices) == len(report.devices)
        and report.emulated == any(device.emulated for device in report.devices)
        and len(planned) == len(report.plan)
        and len(done) == len(set(done)) == len(report.outcomes)
        and planned.issuperset(done)
        and devices.issuperset(job.device_uuid for job in report.plan)
        and all(outcome.measurement is None or _is_possible(outcome.measurement) for outcome in report.outcomes)
    )


def _job_of(outcome: Outcome) -> Job | None:
    """Return the job of an outcome that is exactly one of the three, else None."""
    held = [r for r in (outcome.measurement, outcome.skipped, outcome.failed) if r is not None]
    return held[0].job if len(held) == 1 else None


def _key(job: Job) -> tuple[object, ...]:
    return job.benchmark, job.version, job.device_uuid, job.seed, job.regime, *sorted(job.params.items())


def _is_possible(m: Measurement) -> bool:
    return _follows(m) and not any(number_faults(m, ""))


def _follows(m: Measurement) -> bool:
    """Tell whether a measurement's time and interval follow from its raw times, as a verifier computes them."""
    times = [r.times_s for r in m.rounds]
    if not times or not all(times) or any([r.discarded is not None for r in m.rounds]):  # noqa: C419 - a list is faster
        return False  # discarded rounds are rare: the long way judges them
    fastest, slowest = min(map(min, times)), max(map(max, times))
    if units.amount(m.work, m.metric)[0] <= 0 or not _SHORTEST_S <= fastest <= slowest <= _LONGEST_S:
        return False
    centre, low, high = _interval(times)
    return (
        m.interval.confidence_fraction == CONFIDENCE
        and _is_near(m.time_s, centre)
        and _is_near(m.interval.low_s, max(low, fastest))
        and _is_near(m.interval.high_s, high)
    )


def _is_near(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= _ROUNDING * max(abs(one), abs(other))


def _interval(times: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    """Return what `stats.interval` returns, to a rounding error: that one adds exactly, which takes ten times as long."""
    values = [sorted(t)[len(t) // 2] if len(t) % 2 else median(t) for t in times]
    count = len(values)
    if count < _SPREAD:
        return interval(values)
    centre = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (count - 1))
    half = _quantile(count) * deviation / math.sqrt(count)
    if _gap(times[0]) / 2 > half:  # never less than the timer's step, which takes all times to find
        half = max(half, step(times) / 2)
    return centre, max(centre - half, 0.0), centre + half


def _gap(times: tuple[float, ...]) -> float:
    """Return a gap between two times that is no less than the smallest one, or infinity where the first ones are equal."""
    return abs(times[1] - times[0]) if len(times) > 1 and times[1] != times[0] else math.inf


@cache
def _quantile(count: int) -> float:
    """Read the quantile off the function that verifiers use, so that it cannot be another one."""
    values = [1.0, *[0.0] * (count - 1)]
    centre, _, high = interval(values)
    return (high - centre) * math.sqrt(count) / stdev(values)
