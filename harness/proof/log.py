"""The log beside a report that grows: one line an outcome that the report's seal does not name yet.

Each line carries a digest of all that came before it and, where the report is signed, a signature of its own. The first one follows on
some outcome of the report: lines that the report has caught up with since are still there after a kill between two writes.

Proven by a log that is accepted: its outcomes follow on this report, none between them is missing, none was changed, and who signed the
report signed each. Not proven: that there were not more; and without a key anybody can write one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import Outcome, Report
from harness.proof.seal import OPEN, assemble
from harness.proof.signing import Key, is_signed_by

__all__ = ["beside", "follow", "line", "path_of", "read", "start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One outcome, what came before it, and the signature of the chain up to and with it."""

    before: str
    outcome: Outcome
    signature: str | None


def path_of(report: Path) -> Path:
    """Return where the log of a report is; what has no name has none."""
    return report.with_suffix(".jsonl") if report.name else report / "none.jsonl"


def start(head: Report, plan: list[bytes] | None = None) -> str:
    """Return the chain's value before the first outcome: what stays the same of a report while it grows."""
    constant = replace(head, sealed_at="", outcomes=(), previous=None, seal=OPEN)
    return codec.digest(assemble(constant, (), plan))


def follow(before: str, outcome_digest: str) -> str:
    """Return the chain's value after an outcome."""
    return codec.digest(f"{before}{outcome_digest}".encode())


def line(before: str, outcome: bytes, key: Key | None) -> bytes:
    """Return the line of an outcome, given by its canonical bytes: itself canonical, and the same as encoding the record."""
    signature = f'"{key.sign(follow(before, codec.digest(outcome)))}"' if key else "null"
    return b'{"before":"%s","outcome":%s,"signature":%s}\n' % (before.encode(), outcome, signature.encode())


def beside(report: Path) -> bytes:
    """Return what the log of a report holds, nothing where there is none.

    Read it before the report: a run that is alive may seal what it holds in between, and then empties it.

    Raises:
        MisuseError: it cannot be read.
    """
    path = path_of(report)
    try:
        with path.open("rb") as file:
            return file.read(codec.MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as err:
        msg = f"cannot read the log {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err


def read(data: bytes, report: Report) -> tuple[Outcome, ...]:
    """Return the outcomes of a log that its report does not hold yet. What a kill tore off in the middle of a line is left out.

    Raises:
        ForgeryError: it is not the log of this report, or it was changed; says in which line.
    """
    if len(data) > codec.MAX_BYTES:
        what = f"more than the {codec.MAX_BYTES} bytes that a log may have"
        raise ForgeryError(what, "log")
    whole = data.split(b"\n")[:-1]
    if not whole:
        return ()
    chain = list(accumulate(report.seal.outcomes, follow, initial=start(report)))
    lines = [_decoded(text, at) for at, text in enumerate(whole, 1)]
    if lines[0].before not in chain:
        what = "does not follow on this report: it is the log of another, or of a later state of it"
        raise ForgeryError(what, "log line 1")
    done = chain.index(lines[0].before)
    here = chain[done]
    fresh: list[Outcome] = []
    for at, one in enumerate(lines, 1):
        after = follow(here, codec.digest(one.outcome))
        _check(one, at, here, after, report)
        done, here = done + 1, after
        if done >= len(chain):
            fresh.append(one.outcome)
        elif after != chain[done]:
            what = f"is not outcome {done - 1} of the report, in whose place it stands"
            raise ForgeryError(what, f"log line {at}")
    return tuple(fresh)


def _decoded(text: bytes, at: int) -> _Line:
    try:
        return codec.decode(text, _Line)
    except ForgeryError as err:
        raise ForgeryError(err.what, f"log line {at}: {err.path}") from err


def _check(one: _Line, at: int, before: str, after: str, report: Report) -> None:
    """Refuse a line that does not follow on the one before it, or that the signer of the report did not sign."""
    key, signature = report.seal.public_key, one.signature
    if one.before != before:
        what = "does not follow on the line before it: a line was changed, removed, added or moved"
    elif key is None and signature is not None:
        what = "is signed, but the report is not"
    elif key is not None and not (signature and is_signed_by(key, after, signature)):
        what = f"was changed, or is not signed by {key}, who signed the report"
    else:
        return
    raise ForgeryError(what, f"log line {at}")
