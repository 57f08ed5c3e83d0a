"""What is done again on this machine: the work of a challenge, and a random part of somebody's report.

Shown by an audit that finds nothing: the answers drawn are those of these benchmarks, seeds and parameters. Not shown: how long they took, and on what; who
knows the answer can have computed it anywhere. What this machine cannot judge it names, with the reason.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from harness import codec, registry
from harness.device.cpu import CpuDevice, cpu_device
from harness.device.cuda import CudaDevice, cuda_devices, cuda_status
from harness.errors import MisuseError
from harness.measure.runner import answer_digest
from harness.model import Device, Fault, Measurement, Report, Transcript, Verdict
from harness.proof import log as logs
from harness.proof import prover
from harness.proof import transcript as transcripts
from harness.proof.by_file import read_challenge
from harness.proof.signing import HEX32, Key, load_key
from harness.proof.verify import judge_report

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

__all__ = ["audit", "prove"]

_WORK_MOST = 2e10  # operations and bytes of one run: some seconds of a CPU


def prove(
    challenge: str | Path, *, out: str | Path, key: str | Path | None = None, asked: str | None = None
) -> Transcript:
    """Answer a challenge on the device that it names, and write the transcript to a file.

    Args:
        challenge: the challenge's file.
        out: the file to write.
        key: file of the provider's key; by default the one named by HARNESS_KEY; without one, unsigned.
        asked: the nonce with which the verifier chooses the rows to open, 64 hex digits, if they gave one.

    Raises:
        MisuseError: the challenge is stale or out of range, this machine has no such device, `asked` is no nonce, or `out` cannot be written.
        ForgeryError: the file holds no challenge.
        FailureError: the device has too little memory.
    """
    if asked is not None and not HEX32.fullmatch(asked):
        msg = f"asked {asked[:80]!r} is not a verifier's nonce: 64 lower-case hex digits"
        raise MisuseError(msg)
    signer = _key(key)
    transcripts.require_writable(Path(out))
    found = read_challenge(challenge, now=datetime.now(UTC))
    held = prover.commit(found, _device(found.device_uuid))
    made, openings = held.transcript(asked, signer)
    transcripts.write(Path(out), made, openings)
    return made


def _key(path: str | Path | None) -> Key | None:
    named = path or os.environ.get("HARNESS_KEY")
    return load_key(named) if named else None


def _device(uuid: str) -> Backend:
    """Open the device of this machine that has this UUID."""
    if uuid.startswith("CPU-"):
        here = cpu_device()
        if here.uuid == uuid:
            return CpuDevice(here)
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", uuid)  # so that index 0 is that GPU
        if not cuda_status() and (first := cuda_devices()[0]).uuid == uuid:
            return CudaDevice(first)
    msg = f"no device {uuid!r} here: `harness devices` shows those there are"
    raise MisuseError(msg)


class _OneThread(CpuDevice):
    """A CPU that does everything on one thread: an answer that differs then depends on their number."""

    def lanes(self, n: int) -> int:  # noqa: ARG002
        """Return one."""
        return 1


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of one measurement that was drawn: at most one is set."""

    fault: str | None = None
    proven: str | None = None
    open_question: str | None = None


def audit(report: str | Path, *, count: int = 3, seed: str | None = None) -> Verdict:
    """Do a random part of somebody's report again, and compare the answers.

    Args:
        report: the report's file; it is verified first.
        count: how many of its measurements to draw.
        seed: hex digits that the draw follows from; fresh ones by default, so that nobody knows which.

    Raises:
        MisuseError: there is no such file, or `count` is not positive.
        ForgeryError: it is no report.
    """
    if count < 1:
        msg = f"count must be 1 or more, not {count}"
        raise MisuseError(msg)
    path = Path(report)
    log = logs.beside(path)
    found = codec.read(path, Report)
    verdict = judge_report(found, str(report), log=log)
    if not verdict.accepted:
        return verdict
    drawn_from = seed or secrets.token_hex(8)
    done = [(at, o.measurement) for at, o in enumerate(found.outcomes) if o.measurement]
    drawn = sorted(Random(drawn_from).sample(done, min(count, len(done))), key=lambda one: one[0])  # noqa: S311 - what is secret is the seed
    return _audited(verdict, drawn, len(done), drawn_from)


def _audited(verdict: Verdict, drawn: Sequence[tuple[int, Measurement]], of: int, seed: str) -> Verdict:
    kinds = [(at, measurement, _replayed(measurement)) for at, measurement in drawn]
    faults = tuple(Fault(path=f"$.outcomes[{at}].measurement", what=f.fault) for at, _, f in kinds if f.fault)
    told = [f"{_name(m)}: {f.open_question}" for _, m, f in kinds if f.open_question]
    proven = [f"{_name(m)}: {f.proven}" for _, m, f in kinds if f.proven]
    drew = f"drew {len(drawn)} of {of} measurements by the seed {seed}"
    times = "that any of its times are true: an audit repeats answers, not times"
    return replace(
        verdict,
        accepted=not faults,
        faults=faults,
        proven=() if faults else (*verdict.proven, drew, *proven),
        not_proven=(*told, times, *verdict.not_proven),
    )


def _name(measurement: Measurement) -> str:
    job = measurement.job
    return " ".join((job.benchmark, *(f"{k}={v}" for k, v in sorted(job.params.items()))))


def _replayed(measurement: Measurement) -> _Found:
    """Do one measurement's work again here, untimed."""
    job = measurement.job
    try:
        bench = registry.find([job.benchmark])[0]
    except MisuseError:
        return _Found(open_question="this machine has no such benchmark")
    if bench.version != job.version:
        return _Found(open_question=f"measured with version {job.version}, here is {bench.version}")
    work = measurement.work
    if work.flops + work.bytes_moved + work.items > _WORK_MOST:
        return _Found(open_question="one run is too much work for this machine's CPU")
    try:
        return _compared(measurement, list(_answers(bench, measurement)))
    except registry.Skip as skip:
        return _Found(open_question=f"cannot run here: {skip}")
    except Exception as err:  # noqa: BLE001 - a stranger's parameters in anybody's benchmark
        return _Found(open_question=f"did not run here: {type(err).__name__}: {str(err)[:200]}")


def _answers(bench: registry.Benchmark, measurement: Measurement) -> Iterator[tuple[str, bool, bool]]:
    """Yield the digest of the answer here, whether it is exact, and whether it passes its check; by all threads, then by one."""
    here = Device(uuid=measurement.job.device_uuid, name="CPU", kind="cpu", selector="cpu", sensors={})
    for backend in (CpuDevice(here), _OneThread(here)):
        case = bench.build(backend, int(measurement.job.seed, 16), measurement.job.params)
        answer = case.run()
        yield answer_digest(answer, backend), _is_exact(answer), bool(case.check(answer))


def _is_exact(answer: Array) -> bool:
    parts = answer if isinstance(answer, tuple) else (answer,)
    return all(getattr(getattr(part, "dtype", None), "kind", "f") in "iub" for part in parts)


def _compared(measurement: Measurement, answers: Sequence[tuple[str, bool, bool]]) -> _Found:
    digests = {digest for digest, _, _ in answers}
    if not all(right for _, _, right in answers):
        return _Found(open_question="this machine's own answer does not pass the benchmark's check")
    if measurement.answer_digest in digests:
        return _Found(proven="its answer came out again, bit for bit")
    if not all(exact for _, exact, _ in answers):
        return _Found(
            open_question="floats, which another machine rounds otherwise: its answer cannot be compared by digest"
        )
    if len(digests) > 1:
        return _Found(open_question="its answer depends on how many threads there are")
    return _Found(fault="another answer than the one that follows from its seed and parameters")
