"""Transcripts of challenges beside a report: judged anew, and laid to the device that they are about.

Covers: work that was done by whoever holds the transcript's key, or by anybody where it has none. Does not cover: that the report's own numbers
are true, or that the work was done on the device that the challenge names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import MisuseError
from harness.model import Report
from harness.proof import transcript as transcripts
from harness.proof.by_file import check
from harness.render.report.views import ProofView, Tone
from harness.render.report.words import tame

__all__ = ["proofs_of"]


def proofs_of(files: Iterable[str | Path], reports: Sequence[Report]) -> dict[str, tuple[ProofView, ...]]:
    """Return what transcripts prove, by the digest of the report that has their device.

    Raises:
        MisuseError: there is no such file, or it is about a device of none of the reports.
        ForgeryError: it is no transcript.
    """
    found: dict[str, tuple[ProofView, ...]] = {}
    for file in files:
        uuid = _device_of(file)
        homes = [r for r in reports if any(d.uuid == uuid for d in r.devices)]
        if not homes:
            known = ", ".join(d.uuid for r in reports for d in r.devices)
            message = f"the transcript {str(file)!r} is about device {uuid!r}; the reports have {known or 'none'}"
            raise MisuseError(message)
        for home in homes:
            found[home.seal.digest] = (*found.get(home.seal.digest, ()), _judged(file, uuid, home))
    return found


def _device_of(file: str | Path) -> str:
    try:
        with Path(file).open("rb") as opened:
            return transcripts.open_file(opened)[0].challenge.device_uuid
    except OSError as err:
        message = f"cannot read the transcript {str(file)!r}: {err.strerror}"
        raise MisuseError(message) from err


def _judged(file: str | Path, uuid: str, home: Report) -> ProofView:
    verdict = check(file)
    device = next(d for d in home.devices if d.uuid == uuid)
    name, tone = f"{tame(device.selector, 20)} · {tame(device.name, 80)}", _tone(accepted=verdict.accepted)
    if not verdict.accepted:
        faults = "; ".join(tame(f"{f.path}: {f.what}") for f in verdict.faults[:3])
        return ProofView(device=name, tone=tone, headline=f"Refused: {faults}", proven=(), not_proven=())
    return ProofView(
        device=name,
        tone=tone,
        headline=f"The work of a challenge was done, {_signer(verdict.signed_by, home.seal.public_key)}",
        proven=tuple(map(tame, verdict.proven)),
        not_proven=tuple(map(tame, verdict.not_proven)),
    )


def _tone(*, accepted: bool) -> Tone:
    return "good" if accepted else "bad"


def _signer(key: str | None, reports_key: str | None) -> str:
    if key is None:
        return "by nobody knows whom: it is unsigned"
    if key == reports_key:
        return "signed by the key of this report"
    return f"signed by another key than this report's: {key[:16]}…"
