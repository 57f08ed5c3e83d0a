"""Judges report files: are they whole, unchanged, in order, and do their numbers follow from their raw times?

Proven by an accepted report: nobody changed it since it was sealed; who signed it, if it is signed; its intervals follow from its raw
times; its dates, watts, joules and sizes are possible ones; nothing is missing that its plan names, or it says so; and the reports given form one unbroken chain.
Not proven: that the times were measured, or on that device. An unsigned report could have been written by anybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness import codec, stats, units
from harness.errors import ForgeryError, MisuseError
from harness.model import Fault, Job, Measurement, Outcome, Report, Verdict
from harness.proof import log as logs
from harness.proof.limits import head_faults, number_faults
from harness.proof.seal import head_digest
from harness.proof.signing import HEX32, is_signed_by

__all__ = ["content_faults", "job_of", "judge_report", "verify"]

_ROUNDING = 1e-9  # relative: the same arithmetic on another libm
_DISCARDED_MOST = 2  # rounds that the hardware throttled, each tried again
_SHORTEST_S, _LONGEST_S = 1e-15, 1e9  # nobody measures beyond these, and arithmetic would overflow


def verify(*files: str | Path, signer: str | None = None) -> tuple[Verdict, ...]:
    """Judge report files; several of one node also as a chain, in the order given.

    A node is who signed, and by what name: two owners may call theirs the same, and a fleet signs for all its nodes with one key.

    Args:
        files: the reports.
        signer: a public key in hex that must have signed each of them.

    Raises:
        MisuseError: no file was given, one cannot be read, or `signer` is no public key. Faults are returned, not raised.
    """
    if not files:
        msg = "no report to verify was given"
        raise MisuseError(msg)
    if signer is not None and not HEX32.fullmatch(signer):
        msg = f"signer {signer!r} is not a public key: 64 lower-case hex digits, as `harness keygen` prints"
        raise MisuseError(msg)
    verdicts: list[Verdict] = []
    newest: dict[
        tuple[str, str], tuple[str, str | None]
    ] = {}  # signer and node -> file and digest of its report before this one
    for file in files:
        try:
            log = logs.beside(Path(file))
            report = codec.read(Path(file), Report)
        except ForgeryError as err:
            verdicts.append(_refused(str(file), Fault(path=err.path, what=err.what)))
            continue
        node = (_signer(report) or "unsigned", report.node.name)
        before = newest.get(node)
        newest[node] = (str(file), report.seal.digest)
        found = judge_report(report, str(file), signer=signer, more=_chain_faults(report, before), log=log)
        if before is None and report.previous and len(files) > 1:
            gap = f"that none was left out: it follows {_short(report.previous)}, which is not given before it by this signer and name"
            found = replace(found, not_proven=(*found.not_proven, gap))
        verdicts.append(found)
    return tuple(verdicts)


def judge_report(
    report: Report, subject: str, *, signer: str | None = None, more: Sequence[Fault] = (), log: bytes = b""
) -> Verdict:
    """Judge one decoded report, and the log beside it if it is not complete. `more` are faults found outside both."""
    faults = (*_seal_faults(report), *_signer_faults(report, signer), *content_faults(report), *more)
    complete = len(report.outcomes) == len(report.plan)
    logged, broken = (0, ()) if complete or faults else _logged(report, log)
    faults += broken
    missing = len(report.plan) - len(report.outcomes) - logged
    unchanged = head_digest(report) == report.seal.digest
    signed_by = _signer(report) if unchanged else None
    proven = [
        "no byte was changed since it was sealed",
        f"signed by {signed_by}" if signed_by else None,
        "each interval follows from the raw times",
        f"all {len(report.plan)} planned jobs have an outcome" if complete else None,
        f"the log beside it follows on it and holds more outcomes: {logged}; `harness run --resume` seals them"
        if logged
        else None,
    ]
    open_questions = [
        None if signed_by else "who made it: it is unsigned, and anybody can seal a file",
        f"what {missing} of {len(report.plan)} planned jobs would have given" if missing else None,
        "that the times were measured, and on this device: that takes a challenge",
        "that it ran on a GPU: the device is emulated" if report.emulated else None,
    ]
    return Verdict(
        subject=subject,
        digest=report.seal.digest,
        accepted=not faults,
        signed_by=signed_by,
        complete=complete,
        faults=faults,
        proven=() if faults else tuple(filter(None, proven)),
        not_proven=tuple(filter(None, open_questions)),
    )


def job_of(outcome: Outcome) -> Job | None:
    """Return the job an outcome belongs to, or None if it does not hold exactly one result."""
    held = [r for r in (outcome.measurement, outcome.skipped, outcome.failed) if r is not None]
    return held[0].job if len(held) == 1 else None


def _refused(subject: str, fault: Fault) -> Verdict:
    return Verdict(
        subject=subject,
        digest=None,
        accepted=False,
        signed_by=None,
        complete=False,
        faults=(fault,),
        proven=(),
        not_proven=("anything: it cannot be read as a report",),
    )


def _chain_faults(report: Report, before: tuple[str, str | None] | None) -> tuple[Fault, ...]:
    if before is None or report.previous == before[1]:
        return ()
    what = (
        f"the chain is broken: it follows {_short(report.previous)}, but the report before it here, {before[0]}, "
        f"is {_short(before[1])}: one is missing or they are out of order"
    )
    return (Fault(path="$.previous", what=what),)


def _short(digest: str | None) -> str:
    return digest[:8] if digest else "no report"


def _seal_faults(report: Report) -> Iterator[Fault]:
    yield from _outcome_faults(report)
    if head_digest(report) != report.seal.digest:
        yield Fault(
            path="$.seal.digest", what="the head of the report (all but its outcomes) was changed after it was sealed"
        )
    seal = report.seal
    if seal.algorithm == "unsigned":
        if seal.public_key is not None or seal.signature is not None:
            yield Fault(path="$.seal.algorithm", what="says unsigned, but there is a key or a signature")
    elif not _is_signed(report):
        yield Fault(path="$.seal.signature", what=f"does not fit the digest and the public key {seal.public_key}")


def _signer(report: Report) -> str | None:
    """Return the key that a report is signed with: only one whose signature fits is anybody's."""
    return report.seal.public_key if _is_signed(report) else None


def _is_signed(report: Report) -> bool:
    seal = report.seal
    return bool(seal.public_key and seal.signature and is_signed_by(seal.public_key, seal.digest, seal.signature))


def _outcome_faults(report: Report) -> Iterator[Fault]:
    """Name each outcome that was changed, removed, added or moved."""
    sealed = report.seal.outcomes
    actual = [codec.digest(o) for o in report.outcomes]
    if tuple(actual) == sealed:
        return
    if len(actual) == len(sealed) and sorted(actual) == sorted(sealed):
        first = next(i for i, (a, s) in enumerate(zip(actual, sealed, strict=True)) if a != s)
        yield Fault(path=f"$.outcomes[{first}]", what="the outcomes were put in another order")
        return
    if len(actual) == len(sealed):
        changed = [i for i, (a, s) in enumerate(zip(actual, sealed, strict=True)) if a != s]
        yield from (Fault(path=f"$.outcomes[{i}]", what="was changed after it was sealed") for i in changed)
        return
    known, present = set(sealed), set(actual)
    removed = [i for i, digest in enumerate(sealed) if digest not in present]
    strangers = [i for i, digest in enumerate(actual) if digest not in known]
    for i in removed:
        yield Fault(path="$.outcomes", what=f"outcome {i} of the seal ({sealed[i][:8]}) was removed")
    for i in strangers:
        yield Fault(path=f"$.outcomes[{i}]", what="is not in the seal: added or changed")
    if not removed and not strangers:
        places = {digest: i for i, digest in reversed(list(enumerate(actual)))}
        twice = next((f"$.outcomes[{i}]" for i, digest in enumerate(actual) if places[digest] != i), "$.seal.outcomes")
        yield Fault(path=twice, what="an outcome stands twice")


def _signer_faults(report: Report, signer: str | None) -> Iterator[Fault]:
    if signer and report.seal.public_key != signer:
        yield Fault(path="$.seal.public_key", what=f"signed by {report.seal.public_key or 'nobody'}, not by {signer}")


def _logged(report: Report, log: bytes) -> tuple[int, tuple[Fault, ...]]:
    """Return how many outcomes the log holds beyond the report, and what is wrong with them."""
    try:
        fresh = logs.read(log, report)
    except ForgeryError as err:
        return 0, (Fault(path=err.path, what=err.what),)
    if not fresh:
        return 0, ()
    return len(fresh), tuple(content_faults(replace(report, outcomes=(*report.outcomes, *fresh))))


def content_faults(report: Report) -> Iterator[Fault]:
    """Name what is wrong with what a report says, whoever sealed it."""
    yield from head_faults(report)
    planned = {codec.digest(job) for job in report.plan}
    if len(planned) != len(report.plan):
        yield Fault(path="$.plan", what="a job is planned twice")
    uuids = {d.uuid for d in report.devices}
    if len(uuids) != len(report.devices):
        yield Fault(path="$.devices", what="a device is listed twice")
    if report.emulated != any(d.emulated for d in report.devices):
        yield Fault(path="$.emulated", what="does not agree with the devices")
    done: set[str] = set()
    for i, outcome in enumerate(report.outcomes):
        path, job = f"$.outcomes[{i}]", job_of(outcome)
        if job is None:
            yield Fault(path=path, what="must hold exactly one of measurement, skipped and failed")
            continue
        key = codec.digest(job)
        if key not in planned:
            yield Fault(path=path, what=f"{job.benchmark} with these parameters was not planned")
        if key in done:
            yield Fault(path=path, what=f"a second outcome of one job ({job.benchmark})")
        done.add(key)
        if job.device_uuid not in uuids:
            yield Fault(path=path, what=f"device {job.device_uuid} is not among the report's devices")
        if outcome.measurement:
            yield from _measurement_faults(outcome.measurement, f"{path}.measurement")


def _measurement_faults(m: Measurement, path: str) -> Iterator[Fault]:
    yield from number_faults(m, path)
    if sum(r.discarded is not None for r in m.rounds) > _DISCARDED_MOST and m.state not in {"throttled", "invalid"}:
        yield Fault(
            path=f"{path}.rounds", what="more rounds are discarded than may be tried again: slow ones were left out"
        )
    if units.amount(m.work, m.metric)[0] <= 0:
        yield Fault(path=f"{path}.work", what=f"no work of the kind that its metric, {m.metric}, counts")
    times = [t for r in m.rounds for t in r.times_s]
    if not all(r.times_s for r in m.rounds) or not m.rounds:
        yield Fault(path=f"{path}.rounds", what="a round without times")
    elif not all(_SHORTEST_S <= t <= _LONGEST_S for t in times):
        yield Fault(path=f"{path}.rounds", what="a time that is not positive, or that nobody can have measured")
    else:
        counted = [r.times_s for r in stats.counting(m.rounds)]
        centre, low, high = stats.interval(stats.medians(counted), stats.step(counted))
        expected = (centre, max(low, min(map(min, counted))), high, stats.CONFIDENCE)
        stated = (m.time_s, m.interval.low_s, m.interval.high_s, m.interval.confidence_fraction)
        if not all(math.isclose(a, b, rel_tol=_ROUNDING) for a, b in zip(stated, expected, strict=True)):
            yield Fault(path=f"{path}.interval", what=f"says {stated}, its raw times give {expected}")
