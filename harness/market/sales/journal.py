"""What became of each quote: one SQLite file that only grows, each row with the digest of the row before it.

A row is a step of a quote's life (`life`) or a note beside it. Uniqueness is the database's: no state of a quote twice, no payment twice, no
idempotency key twice, no two rows after the same row. Each `append` is one transaction that is on the disk before it returns.

Promised: of several processes that want the same step, the same payment or the same device, one gets it; a row that was changed, removed or put
in is found by `journal_check`, from the first one on; who keeps a head can later tell whether the journal still contains it.
Not promised: that the newest rows were not cut off, to somebody who kept no head; or that what a row says is true.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rfc8785

from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.sales.life import AGAIN, START, State, StateError, holds_device, step
from harness.strangers import loads

__all__ = [
    "COLUMNS",
    "GENESIS",
    "DeviceTakenError",
    "Entry",
    "Journal",
    "KeyUsedError",
    "PaymentUsedError",
    "Row",
    "of_values",
    "seal_of",
]

GENESIS = "0" * 64
_VERSION = 1
_BUSY_S = 10.0
COLUMNS = "seq, at, quote_id, kind, state, claim, idempotency_key, device, until_s, body, previous, digest"
_SCHEMA = f"""
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, quote_id TEXT NOT NULL, kind TEXT NOT NULL, state TEXT, claim TEXT UNIQUE,
    idempotency_key TEXT UNIQUE, device TEXT, until_s INTEGER, body TEXT NOT NULL, previous TEXT NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE,
    UNIQUE (quote_id, state)
) STRICT;
CREATE INDEX of_quote ON journal (quote_id, seq);
CREATE INDEX of_device ON journal (device, until_s) WHERE device IS NOT NULL;
CREATE TRIGGER rows_stay BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'a journal only grows'); END;
CREATE TRIGGER rows_keep BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'a journal only grows'); END;
PRAGMA user_version = {_VERSION};
"""


class PaymentUsedError(MisuseError):
    """This payment has been claimed, for this quote or another."""


class KeyUsedError(MisuseError):
    """This idempotency key has been used."""


class DeviceTakenError(MisuseError):
    """The device is somebody else's for some of that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row that is to be written: a step where `state` is set, else a note.

    `claim` names a payment, as its payer and nonce; `device` and `until_s`, in seconds of Unix time, keep a device from others.
    """

    quote_id: str
    expected: State | None = None
    state: State | None = None
    note: str | None = None
    claim: str | None = None
    idempotency_key: str | None = None
    device: str | None = None
    until_s: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row as it stands; `digest` is that of all the rest."""

    seq: int
    at: str
    quote_id: str
    kind: str  # step, or what the note is about
    state: State | None
    claim: str | None
    idempotency_key: str | None
    device: str | None
    until_s: int | None
    body: Mapping[str, Any]
    previous: str
    digest: str


class Journal:
    """An open journal. May be used from several threads, and the file by several processes."""

    def __init__(
        self,
        path: str | Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open a journal, or begin one.

        Raises:
            FailureError: the file cannot be opened or made.
            ForgeryError: it is not a journal of this kind.
        """
        self._path, self._now = str(path), now
        self._lock, self._reading = threading.Lock(), threading.Lock()
        try:
            Path(path).touch(mode=0o600)  # salts and deliveries are in it; SQLite gives its other files the same mode
            self._db = self._connect()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._begin()
            self._reader = self._connect()  # who reads does not wait for who writes
        except (OSError, sqlite3.OperationalError) as err:
            message = f"cannot open the journal {self._path!r}: {err}"
            raise FailureError(message) from err
        except sqlite3.DatabaseError as err:
            message = f"{self._path!r} is not a journal of quotes: {err}"
            raise ForgeryError(message) from err

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

    def _begin(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
            elif version != _VERSION:
                message = f"{self._path!r} is another kind of database (version {version}, not {_VERSION})"
                raise ForgeryError(message)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def append(self, *entries: Entry) -> tuple[Row, ...]:
        """Write rows, all or none, and return once they are on the disk.

        Raises:
            StateError: a quote is not in the state that was expected.
            PaymentUsedError: a claim was made before.
            KeyUsedError: an idempotency key was used before.
            DeviceTakenError: a device is kept by another quote.
            MisuseError: a body cannot be written as canonical JSON.
            FailureError: the disk is full or broken; nothing was written.
        """
        try:
            with self._transaction():
                return tuple(self._write(entry) for entry in entries)
        except sqlite3.IntegrityError as err:
            raise _of_index(str(err)) from err
        except sqlite3.Error as err:
            message = f"cannot write to the journal {self._path!r}: {err}"
            raise FailureError(message) from err

    def _write(self, entry: Entry) -> Row:
        if entry.state is not None:
            step(_state(self._db, entry.quote_id), entry.expected or START, entry.state)
        if entry.device is not None:
            self._keep(self._db, entry.device)
        seq, previous = _head(self._db)
        unsealed = {
            "seq": seq + 1,
            "at": self._now().astimezone(UTC).isoformat(timespec="microseconds"),
            "quote_id": entry.quote_id,
            "kind": "step" if entry.state else entry.note or "note",
            "state": entry.state,
            "claim": entry.claim,
            "idempotency_key": entry.idempotency_key,
            "device": entry.device,
            "until_s": entry.until_s,
            "body": dict(entry.body),
            "previous": previous,
        }
        try:
            row = Row(**unsealed, digest=_seal(unsealed))  # type: ignore[arg-type]
            loads(rfc8785.dumps(row.body))  # what could not be read back would end the journal
        except (rfc8785.CanonicalizationError, ValueError, RecursionError) as err:
            message = f"what is to be written of {entry.quote_id} is not JSON as RFC 8785 has it and this journal reads it: {err}"
            raise MisuseError(message) from err
        self._db.execute(f"INSERT INTO journal ({COLUMNS}) VALUES ({', '.join('?' * 12)})", _flat(row))  # noqa: S608 - constants
        return row

    def _keep(self, db: sqlite3.Connection, device: str) -> None:
        now_s = int(self._now().timestamp())
        holders = db.execute("SELECT quote_id, until_s FROM journal WHERE device = ? AND until_s > ?", (device, now_s))
        for holder, until_s in holders.fetchall():
            if holds_device(_state(db, holder)):
                message = f"{device} is kept until {until_s} s of Unix time"
                raise DeviceTakenError(message)

    def head(self) -> str:
        """Return the digest of the newest row, which stands for all rows."""
        with self._reading:
            return _head(self._reader)[1]

    def state(self, quote_id: str) -> State | None:
        """Return where a quote stands, or None where the journal has nothing of it."""
        rows = self.rows(quote_id)
        return next((row.state for row in reversed(rows) if row.state), None)

    def rows(self, quote_id: str) -> tuple[Row, ...]:
        """Return all rows of a quote, in the order in which they were written."""
        return self._find("quote_id", quote_id)

    def document(self, name: str) -> bytes | None:
        """Return what was kept under a hash, or None. Quotes have names of the same form, so that other rows may bear this one."""
        kept = next((row for row in self.rows(name) if row.kind == "document"), None)
        return None if kept is None else str(kept.body["text"]).encode()

    def by_key(self, idempotency_key: str) -> Row | None:
        """Return the row that an idempotency key was used for."""
        return next(iter(self._find("idempotency_key", idempotency_key)), None)

    def by_claim(self, claim: str) -> Row | None:
        """Return the row that a payment was claimed for."""
        return next(iter(self._find("claim", claim)), None)

    def is_let(self, device: str) -> bool:
        """Tell whether a device is kept by some quote now."""
        with self._reading:
            try:
                self._keep(self._reader, device)
            except DeviceTakenError:
                return True
            return False

    def _find(self, column: str, value: str) -> tuple[Row, ...]:
        with self._reading:
            found = self._reader.execute(f"SELECT {COLUMNS} FROM journal WHERE {column} = ? ORDER BY seq", (value,))  # noqa: S608 - constants
            return tuple(of_values(values) for values in found.fetchall())

    def standing(self, *states: State) -> tuple[str, ...]:
        """Return the quotes that stand in one of some states, in the order in which they came there."""
        return tuple(quote_id for quote_id, state in self._stands() if state in states)

    def recover(self) -> tuple[Row, ...]:
        """End what a process that died left in the middle of a payment: void what had not been sent, and mark the rest as unknown.

        Only for the one process that drives payments, before it starts to.
        """
        return tuple(
            row
            for quote_id, state in self._stands()
            if state in AGAIN
            for row in self.append(
                Entry(quote_id=quote_id, expected=state, state=AGAIN[state], body={"why": f"restarted while {state}"})
            )
        )

    def _stands(self) -> list[tuple[str, State]]:
        with self._reading:
            return self._reader.execute(
                "SELECT quote_id, state FROM journal WHERE seq IN "
                "(SELECT max(seq) FROM journal WHERE state IS NOT NULL GROUP BY quote_id) ORDER BY seq"
            ).fetchall()

    def heads(self, count: int) -> tuple[str, ...]:
        """Return the heads that the journal had of late, newest first; that of an empty one among them."""
        with self._reading:
            found = self._reader.execute("SELECT digest FROM journal ORDER BY seq DESC LIMIT ?", (count,))
            return (*(digest for (digest,) in found.fetchall()), GENESIS)

    def close(self) -> None:
        """Close the file."""
        for db, lock in ((self._reader, self._reading), (self._db, self._lock)):
            with lock:
                db.close()


def _head(db: sqlite3.Connection) -> tuple[int, str]:
    found = db.execute("SELECT seq, digest FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    return found or (0, GENESIS)


def _state(db: sqlite3.Connection, quote_id: str) -> State:
    found = db.execute(
        "SELECT state FROM journal WHERE quote_id = ? AND state IS NOT NULL ORDER BY seq DESC LIMIT 1", (quote_id,)
    ).fetchone()
    state: State = found[0] if found else START
    return state


def _statements(script: str) -> Sequence[str]:
    """Cut a script into statements; `executescript` would end the transaction."""
    found, part = [], ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found


def seal_of(row: Row) -> str:
    """Return the digest that a row should have."""
    return _seal({name: getattr(row, name) for name in Row.__slots__ if name != "digest"})


def _seal(unsealed: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"harness.journal/1\0" + rfc8785.dumps(dict(unsealed))).hexdigest()


def _flat(row: Row) -> tuple[object, ...]:
    values = (getattr(row, name.strip()) for name in COLUMNS.split(","))
    return tuple(rfc8785.dumps(value).decode() if isinstance(value, dict) else value for value in values)


def of_values(values: Sequence[Any]) -> Row:
    """Make a row of a line of the table, in the order of `COLUMNS`.

    Raises:
        ForgeryError: its body is no JSON.
    """
    fields = dict(zip((name.strip() for name in COLUMNS.split(",")), values, strict=True))
    try:
        fields["body"] = loads(fields["body"])
    except (TypeError, ValueError) as err:
        what = f"row {fields['seq']} holds no JSON"
        raise ForgeryError(what) from err
    return Row(**fields)


def _of_index(message: str) -> MisuseError:
    """Return the error that a violated index stands for."""
    if "journal.claim" in message:
        return PaymentUsedError("this payment has been used")
    if "journal.idempotency_key" in message:
        return KeyUsedError("this idempotency key has been used")
    return StateError(f"somebody else wrote first: {message}")
