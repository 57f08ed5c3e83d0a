"""A report that grows on disk: whole, sealed and verifiable after every outcome, whatever kills the process next.

Each outcome is encoded once; the file is written beside itself, synced, and renamed into place. While it grows it is called
`<utc>-<node>-partial.json`; complete, it gets the name it keeps: `<utc>-<node>-<digest8>.json`, with the time of its completion, so that
reports in the order of their names are in the order of their chain.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness import codec
from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.measure.runner import now
from harness.model import Job, Outcome, Report
from harness.proof.seal import assemble, seal
from harness.proof.signing import Key
from harness.proof.verify import job_of, judge_report

__all__ = ["Journal", "prepare_folder", "reopen"]

_FINISHED = re.compile(r"\d{8}T\d{6}Z-.+-[0-9a-f]{8}\.json")
_GROWING = re.compile(r"\d{8}T\d{6}Z-.+-partial\d*\.json")


def prepare_folder(out: str | Path) -> Path:
    """Make the folder for reports if it is missing, and write to it once.

    Raises:
        MisuseError: it cannot be made or written to.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        msg = f"cannot write reports to {str(out)!r}: {err.strerror}; name a folder you may write to with --out"
        raise MisuseError(msg) from err
    return folder


class Journal:
    """One node's report, and the file that it is in."""

    def __init__(self, folder: Path, head: Report, key: Key | None, *, path: Path | None = None) -> None:
        self._folder = folder
        self._key = key
        self._outcomes: list[Outcome] = list(head.outcomes)
        self._bytes = [codec.encode(o) for o in self._outcomes]
        self._head = replace(head, outcomes=(), previous=_newest_digest(folder, head.node.name))
        stamp = re.sub(r"[-:]", "", head.created_at)
        self.path = path or _unused(folder, f"{stamp}-{_slug(head.node.name)}-partial")
        self._save()

    @property
    def report(self) -> Report:
        """The report as it stands."""
        return replace(self._head, outcomes=tuple(self._outcomes))

    def pending(self) -> tuple[Job, ...]:
        """Return the planned jobs that have no outcome yet."""
        done = {codec.digest(job_of(o)) for o in self._outcomes}
        return tuple(job for job in self._head.plan if codec.digest(job) not in done)

    def append(self, outcome: Outcome) -> None:
        """Add an outcome; once this returns it is on disk."""
        self._outcomes.append(outcome)
        self._bytes.append(codec.encode(outcome))
        self._save()

    def finish(self) -> Path:
        """Give a complete report the name it keeps."""
        if self.pending():
            return self.path
        previous = _newest_digest(self._folder, self._head.node.name)
        if previous != self._head.previous:  # another report was completed meanwhile
            self._head = replace(self._head, previous=previous)
            self._save()
        digest8 = self._head.seal.digest[:8]
        stamp = re.sub(r"[-:]", "", self._head.sealed_at)
        final = self._folder / f"{stamp}-{_slug(self._head.node.name)}-{digest8}.json"
        self.path.rename(final)
        self.path = final
        return final

    def _save(self) -> None:
        digests = [codec.digest(b) for b in self._bytes]
        self._head = seal(replace(self._head, sealed_at=now()), digests, self._key)
        _write(self.path, assemble(self._head, self._bytes))


def reopen(path: str | Path, key: Key | None) -> Journal:
    """Take up an unfinished report again.

    A report that was killed between its last outcome and its final name lacks only that.

    Raises:
        MisuseError: there is no such file, it is complete, or it was signed with another key than this.
        ForgeryError: it does not verify.
    """
    file = Path(path)
    report = codec.read(file, Report)
    verdict = judge_report(report, str(file))
    if verdict.faults:
        raise ForgeryError(verdict.faults[0].what, verdict.faults[0].path)
    if verdict.complete and not _GROWING.fullmatch(file.name):
        msg = f"{str(path)!r} is complete: there is nothing to resume"
        raise MisuseError(msg)
    if verdict.signed_by != (key.public_hex if key else None):
        msg = (
            f"{str(path)!r} was signed by {verdict.signed_by or 'nobody'}: resume it with the same key, given by --key"
        )
        raise MisuseError(msg)
    return Journal(prepare_folder(file.parent), report, key, path=file)


def _write(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as err:
        msg = f"cannot write the report {str(path)!r}: {err.strerror}"
        raise FailureError(msg) from err


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "node"


def _unused(folder: Path, stem: str) -> Path:
    names: Sequence[str] = [stem, *(f"{stem}{i}" for i in range(2, 1000))]
    for name in names:
        path = folder / f"{name}.json"
        with contextlib.suppress(FileExistsError), path.open("xb"):
            return path
    msg = f"no free name like {stem}.json in {str(folder)!r}"
    raise FailureError(msg)


def _newest_digest(folder: Path, node: str) -> str | None:
    """Return the digest of this node's last complete report in the folder, skipping what cannot be read as one."""
    for path in sorted(folder.glob(f"*-{_slug(node)}-*.json"), reverse=True):
        if not _FINISHED.fullmatch(path.name):
            continue
        with contextlib.suppress(HarnessError):
            report = codec.read(path, Report)
            if report.node.name == node:
                return report.seal.digest
    return None
