"""A report that grows on disk, and loses nothing, whatever kills the process next.

An outcome is first appended to a log beside the report, and synced: about a millisecond, however many there are. The report itself,
sealed and verifiable at any moment, is written anew when the log has grown by a twentieth of all outcomes: after each of the first
twenty, then ever more rarely. So the cost of an outcome does not grow with their number.

While it grows it is called `<utc>-<node>-partial.json`, and the log, which is locked as long as the run lives, `...-partial.jsonl`. Complete,
it gets the name it keeps: `<utc>-<node>-<digest8>.json`, with the time of its completion, so that reports in the order of their names are
in the order of their chain.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from harness import codec
from harness.cluster.room import Size, least, most
from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.measure.runner import now
from harness.model import Failed, Job, Outcome, Report
from harness.proof import log as logs
from harness.proof.seal import assemble, seal
from harness.proof.signing import Key
from harness.proof.verify import content_faults, job_of, judge_report

__all__ = ["Journal", "prepare_folder", "reopen"]

_FINISHED = re.compile(r"\d{8}T\d{6}Z-.+-[0-9a-f]{8}\.json")
_SEAL_EVERY = 20  # the report is written when the log has a twentieth of its outcomes
_FULL = "the report is as large as one may be: measure fewer points in one run"
_SECOND_POLLS = 20  # to wait for the next second in
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
    """One node's report, the file that it is in, and the log of what is not sealed in it yet."""

    def __init__(
        self, folder: Path, head: Report, key: Key | None, *, path: Path | None = None, log: _Log | None = None
    ) -> None:
        self._folder, self._key = folder, key
        self._head = replace(head, outcomes=(), previous=_newest(folder, head.node.name)[1])
        self._plan = [codec.encode(job) for job in head.plan]
        self._pending = {codec.digest(data): job for data, job in zip(self._plan, head.plan, strict=True)}
        self._outcomes: list[Outcome] = []
        self._bytes: list[bytes] = []
        self._digests: list[str] = []
        self._sealed = 0  # outcomes that the file holds
        self._size = Size()  # of the file with the outcomes that are not in it yet
        self._promised = sum(map(least, self._plan), Size())
        self._chain = logs.start(head, self._plan)
        self.path = path or _unused(folder, f"{_stem(head, head.created_at)}-partial")
        self._log = log or _Log(self.path)
        for outcome in head.outcomes:
            self._add(outcome, codec.encode(outcome))
        self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def report(self) -> Report:
        """The report as it was last sealed."""
        return replace(self._head, outcomes=tuple(self._outcomes[: self._sealed]))

    def pending(self) -> tuple[Job, ...]:
        """Return the planned jobs that have no outcome yet."""
        return tuple(self._pending.values())

    def append(self, outcome: Outcome) -> Outcome:
        """Add an outcome, and return it as it stands: a failure where the report has no room for more. Once this returns it is on disk.

        Raises:
            FailureError: it cannot be written, it is no outcome of a planned job, or not the first one.
        """
        job = self._planned(outcome)
        data = codec.encode(outcome)
        if not self._has_room(job, Size.of(data)):
            outcome = _without_room(job, outcome)
            data = codec.encode(outcome)
            if not (self._size + Size.of(data)).within(most()):
                msg = f"cannot write to {str(self.path)!r}: {_FULL}"
                raise FailureError(msg)
        self._log.append(logs.line(self._chain, data, self._key))
        self._add(outcome, data)
        unsealed = len(self._outcomes) - self._sealed
        if unsealed * _SEAL_EVERY >= len(self._outcomes):
            self._save()
        return outcome

    def finish(self) -> Path:
        """Seal what there is, and give a complete report the name it keeps."""
        if self.pending():
            self._catch_up()
            return self.path
        with _alone_in(self._folder):  # who looks for the report before this one must find it, or come after it
            before, previous = _newest(self._folder, self._head.node.name)
            if previous != self._head.previous or _stamp(self._head.sealed_at) <= before:
                _wait_until_after(before)
                self._head = replace(self._head, previous=previous)
                self._save()
            self._catch_up()
            final = self._folder / f"{_stem(self._head, self._head.sealed_at)}-{self._head.seal.digest[:8]}.json"
            self.path.rename(final)
        self.path = final
        self._log.release()
        return final

    def close(self) -> None:
        """Seal what there is, and let go of the file: somebody else may resume it."""
        if self._log.held:
            try:
                self._catch_up()
            finally:
                self._log.release()

    def _planned(self, outcome: Outcome) -> Job:
        job = job_of(outcome)
        if job is None or codec.digest(job) not in self._pending:
            told = (
                f"of {job.benchmark}, which has one or is not planned" if job else "that holds not exactly one result"
            )
            msg = f"the report {str(self.path)!r} does not take an outcome {told}"
            raise FailureError(msg)
        return job

    def _has_room(self, job: Job, size: Size) -> bool:
        """Tell whether an outcome fits beside a failure for each other job that has none yet."""
        own = least(codec.encode(job))
        beside = Size() if size.within(own) else self._promised - own
        return (self._size + size + beside).within(most())

    def _add(self, outcome: Outcome, data: bytes) -> None:
        digest = codec.digest(data)
        self._outcomes.append(outcome)
        self._bytes.append(data)
        self._digests.append(digest)
        self._chain = logs.follow(self._chain, digest)
        self._size += Size.of(data)
        job = codec.encode(job_of(outcome))
        if self._pending.pop(codec.digest(job), None):
            self._promised -= least(job)

    def _catch_up(self) -> None:
        if self._sealed < len(self._outcomes):
            self._save()

    def _save(self) -> None:
        """Write the whole report; only then is the log not needed any more."""
        self._head = seal(replace(self._head, sealed_at=now()), self._digests, self._key, self._plan)
        data = assemble(self._head, self._bytes, self._plan)
        _write(self.path, data)
        self._size, self._sealed = Size.of_report(data), len(self._outcomes)
        self._log.clear()


def _without_room(job: Job, outcome: Outcome) -> Outcome:
    made = outcome.measurement or outcome.failed
    started_at, elapsed_s = (made.started_at, made.elapsed_s) if made else (now(), 0.0)
    failed = Failed(job=job, started_at=started_at, elapsed_s=elapsed_s, outcome="failed", reason=_FULL)
    return Outcome(failed=failed, attempts=outcome.attempts)


class _Log:
    """The log's file, locked: a process that has it has the report. The lock ends with the process, however it ends."""

    def __init__(self, report: Path) -> None:
        self.path = logs.path_of(report)
        self._fd = _locked(self.path, report)
        self._closer = weakref.finalize(self, os.close, self._fd)
        self._length = os.fstat(self._fd).st_size
        _sync_folder(self.path.parent)

    @property
    def held(self) -> bool:
        """Whether the lock is."""
        return self._closer.alive

    def append(self, data: bytes) -> None:
        """Add a line; once this returns it is on disk."""
        with self._told():
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._fd, data[written:])
                os.fdatasync(self._fd)
            except OSError:
                os.ftruncate(self._fd, self._length)  # half a line may only be the last one
                raise
        self._length += len(data)

    def clear(self) -> None:
        """Forget what the report holds now."""
        if self._length:
            with self._told():
                os.ftruncate(self._fd, 0)
            self._length = 0

    def release(self) -> None:
        """Let go of it, and remove it if nothing is in it."""
        if self.held:
            if not self._length:
                self.path.unlink(missing_ok=True)
            self._closer()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            msg = f"cannot write the log {str(self.path)!r}: {err.strerror}"
            raise FailureError(msg) from err


def _locked(path: Path, report: Path) -> int:
    """Open a log for this process alone."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as err:
            msg = f"cannot open the log {str(path)!r}: {err.strerror}"
            raise MisuseError(msg) from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed it meanwhile: then this is the lock of a file that nobody else will find.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError as err:
            os.close(fd)
            msg = f"{str(report)!r} belongs to a run that is alive: let it finish, or end it, before it is resumed"
            raise MisuseError(msg) from err
        os.close(fd)


def reopen(path: str | Path, key: Key | None) -> Journal:
    """Take up an unfinished report again, and what stands in the log beside it.

    A report that was killed between its last outcome and its final name lacks only that.

    Raises:
        MisuseError: there is no such file, it is complete, a run that is alive is writing it, or it was signed with another key than this.
        ForgeryError: it does not verify, or its log does not.
    """
    file = Path(path)
    if not file.is_file():
        codec.read(file, Report)  # says why not
    log = _Log(file)
    try:
        return Journal(prepare_folder(file.parent), _resumable(file, key), key, path=file, log=log)
    except BaseException:
        log.release()
        raise


def _resumable(file: Path, key: Key | None) -> Report:
    """Return a report with the outcomes of its log, all of them judged."""
    report = codec.read(file, Report)
    verdict = judge_report(report, str(file))
    if verdict.faults:
        raise ForgeryError(verdict.faults[0].what, verdict.faults[0].path)
    if verdict.complete and not _GROWING.fullmatch(file.name):
        msg = f"{str(file)!r} is complete: there is nothing to resume"
        raise MisuseError(msg)
    if verdict.signed_by != (key.public_hex if key else None):
        msg = (
            f"{str(file)!r} was signed by {verdict.signed_by or 'nobody'}: resume it with the same key, given by --key"
        )
        raise MisuseError(msg)
    fresh = logs.read(logs.beside(file), report)
    whole = replace(report, outcomes=(*report.outcomes, *fresh))
    for fault in content_faults(whole) if fresh else ():
        raise ForgeryError(fault.what, f"with its log: {fault.path}")
    return whole


def _write(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as err:
        msg = f"cannot write the report {str(path)!r}: {err.strerror}"
        raise FailureError(msg) from err


def _sync_folder(folder: Path) -> None:
    """Put the names of files on disk, too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, where its file system has locks: only one report is completed at a time."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _stamp(at: str) -> str:
    return re.sub(r"[-:]", "", at)


def _stem(head: Report, at: str) -> str:
    return f"{_stamp(at)}-{_slug(head.node.name)}"


def _wait_until_after(stamp: str) -> None:
    """Wait for the next second: of two names with the same time the digests would decide the order. A clock that was set back is not awaited."""
    for _ in range(_SECOND_POLLS):
        if _stamp(now()) > stamp:
            return
        time.sleep(1 / _SECOND_POLLS)


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


def _newest(folder: Path, node: str) -> tuple[str, str | None]:
    """Return the stamp and the digest of this node's last complete report in the folder, skipping what cannot be read as one."""
    for path in sorted(folder.glob(f"*-{_slug(node)}-*.json"), reverse=True):
        if not _FINISHED.fullmatch(path.name):
            continue
        with contextlib.suppress(HarnessError):
            report = codec.read(path, Report)
            if report.node.name == node:
                return _stamp(report.sealed_at), report.seal.digest
    return "", None
