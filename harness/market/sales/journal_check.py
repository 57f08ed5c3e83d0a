"""Is a journal of quotes what it was when it was written? Anybody who has the file can tell, and who kept an old head can tell more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import rfc8785

from harness.errors import ForgeryError, MisuseError
from harness.market.sales.journal import COLUMNS, GENESIS, Row, of_values, seal_of
from harness.market.sales.life import State, StateError, replay

__all__ = ["Checked", "check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `check` found: how many rows, the newest one's digest, how many quotes ended or stand where, and those that want a person."""

    row_count: int
    head: str
    quote_counts: Mapping[str, int]  # by state
    unknown: tuple[str, ...]  # quotes with an unknown outcome: ask the chain
    undelivered: tuple[str, ...]  # paid, and no sign that what was paid for was handed over


def check(path: str | Path, *, head: str | None = None) -> Checked:
    """Read a whole journal and hold it to its own rules.

    Args:
        path: a file of `harness serve`; it is opened for reading only.
        head: a digest that the journal had once, which it must still contain.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: a row does not have its digest, does not follow from the row before it, or is no step of a quote's life; says which.
    """
    if not Path(path).is_file():
        message = f"there is no journal {str(path)!r}"
        raise MisuseError(message)
    try:
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = db.execute(f"SELECT {COLUMNS} FROM journal ORDER BY seq")  # noqa: S608 - constants
            return _checked((of_values(values) for values in found), head)
        finally:
            db.close()
    except sqlite3.Error as err:
        message = f"{str(path)!r} is not a journal of quotes: {err}"
        raise ForgeryError(message) from err


def _checked(rows: Iterator[Row], head: str | None) -> Checked:
    lives: dict[str, list[State]] = {}
    notes: dict[str, set[str]] = {}
    claims: set[str] = set()
    previous, count, seen = GENESIS, 0, head in {None, GENESIS}
    for count, row in enumerate(rows, 1):
        path = f"$[{count - 1}]"
        if (row.seq, row.previous) != (count, previous):
            what = f"row {row.seq} does not follow from the row before it: rows were removed, put in or moved"
            raise ForgeryError(what, path)
        if not _sealed(row):
            what = f"row {row.seq} does not have its digest: it was changed"
            raise ForgeryError(what, path)
        if row.claim in claims:
            what = f"row {row.seq} claims a payment that was claimed before"
            raise ForgeryError(what, path)
        claims |= {row.claim} if row.claim else set()
        previous, seen = row.digest, seen or row.digest == head
        if row.state is None:
            notes.setdefault(row.quote_id, set()).add(row.kind)
            continue
        lives.setdefault(row.quote_id, []).append(row.state)
        try:
            replay(lives[row.quote_id])
        except StateError as err:
            what = f"row {row.seq} is no step of a quote's life: {err}"
            raise ForgeryError(what, path) from err
    if not seen:
        what = f"the journal does not contain the row {head}: rows were cut off"
        raise ForgeryError(what)
    ends = {quote_id: life[-1] for quote_id, life in lives.items()}
    paid = (quote_id for quote_id, life in lives.items() if "CAPTURED" in life and "RUNNING" not in life)
    return Checked(
        row_count=count,
        head=previous,
        quote_counts={state: list(ends.values()).count(state) for state in sorted(set(ends.values()))},
        unknown=tuple(quote_id for quote_id, state in ends.items() if state == "OUTCOME_UNKNOWN"),
        undelivered=tuple(quote_id for quote_id in paid if "delivered" not in notes.get(quote_id, ())),
    )


def _sealed(row: Row) -> bool:
    """Tell whether a row has its digest. What RFC 8785 has no bytes for, no row was written with."""
    try:
        return row.digest == seal_of(row)
    except (rfc8785.CanonicalizationError, UnicodeError):
        return False
