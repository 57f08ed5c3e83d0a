"""Challenges and transcripts that travel as files: issue one, read one, check an answer. Needs no device, and loads no GPU's library."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import Challenge, Fault, Param, Verdict
from harness.proof import challenge as challenges
from harness.proof import transcript as transcripts

__all__ = ["challenge", "check", "read_challenge"]

_SMALL, _LARGE = 512, 16_384  # n: what a CPU does in a second, and what keeps a GPU's units busy


def challenge(  # noqa: PLR0913 - it mirrors the command
    *,
    device: str,
    out: str | Path,
    provider: str = "anybody",
    mode: str = "int8",
    n: int | None = None,
    steps: int = 8,
    openings: int = 512,
    scans: int = 0,
    beacon: str | None = None,
    epoch: int = 0,
    valid_for_s: int = 3600,
) -> Challenge:
    """Issue a challenge and write it to a new file.

    Args:
        device: the UUID of the device that is to do the work; `harness devices` shows it.
        out: the file; it must not exist.
        provider: the public key that the answer must be signed with, or any other name for who is to answer.
        mode: int8, float16, bfloat16, float32 or float64.
        n: the matrices are n x n, n a multiple of 16; by default 512 for a CPU, 16,384 for a GPU.
        steps: products, each of the state before; as many states are kept.
        openings: rows that are looked at; 512 bound what was left out to 17 % with 90 % confidence, allowing for 2^64 tries at choosing them.
        scans: times that all states are read again.
        beacon: a public random value of this moment.
        epoch: the number of the period it belongs to.
        valid_for_s: seconds after which it is stale.

    Raises:
        MisuseError: an argument is out of range, or the file exists or cannot be written.
    """
    size = n or (_SMALL if device.startswith("CPU-") else _LARGE)
    params: dict[str, Param] = {"mode": mode, "n": size, "steps": steps, "openings": openings, "scans": scans}
    params["scan_openings"] = openings if scans else 0
    made = challenges.issue(
        provider=provider,
        device_uuid=device,
        epoch=epoch,
        params=params,
        now=datetime.now(UTC),
        valid_for_s=valid_for_s,
        beacon=beacon,
    )
    try:
        with Path(out).open("xb") as file:
            file.write(codec.encode(made))
    except OSError as err:
        msg = f"cannot write the challenge to {str(out)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    return made


def read_challenge(path: str | Path, *, now: datetime) -> Challenge:
    """Read a challenge that is to be answered now.

    Raises:
        MisuseError: there is no such file, it is out of range, or it is stale.
        ForgeryError: it is no challenge.
    """
    found = codec.read(Path(path), Challenge)
    challenges.task(found)
    left_s = challenges.lifetime_s(found) - (now - challenges.issued_at(found)).total_seconds()
    if left_s < 0:
        msg = f"the challenge {str(path)!r} expired at {found.expires_at}: ask for another"
        raise MisuseError(msg)
    return found


def check(transcript: str | Path, *, challenge: str | Path | None = None) -> Verdict:
    """Judge a transcript's file as a third party.

    Args:
        transcript: what `harness prove` wrote.
        challenge: a challenge's file that it must be the answer to.

    Raises:
        MisuseError: a file cannot be read. What is wrong with the transcript is returned, not raised.
    """
    from harness.proof import verifier  # it needs NumPy

    wanted = codec.read(Path(challenge), Challenge) if challenge else None
    try:
        with Path(transcript).open("rb") as file:
            record, openings = transcripts.open_file(file)
            verdict = verifier.check(record, openings, subject=str(transcript))
    except OSError as err:
        msg = f"cannot read {str(transcript)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    except ForgeryError as err:
        return _unreadable(str(transcript), Fault(path=err.path, what=err.what))
    if wanted is None or wanted == record.challenge:
        return verdict
    stranger = Fault(path="$.challenge", what="is another challenge than the one it should answer")
    return replace(verdict, accepted=False, faults=(stranger, *verdict.faults), proven=(), work=None)


def _unreadable(subject: str, fault: Fault) -> Verdict:
    return Verdict(
        subject=subject,
        digest=None,
        accepted=False,
        signed_by=None,
        complete=False,
        faults=(fault,),
        proven=(),
        not_proven=("anything: it cannot be read as a transcript",),
    )
