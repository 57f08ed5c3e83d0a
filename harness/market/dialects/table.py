"""Offers as rows of a table: CSV, Parquet and pandas, every amount as text, with the whole envelope in the last column.

Amounts are text because tables are read by programs that turn a long whole number into a float, or refuse it above 2^63. In CSV every cell is
quoted for the same reason; read it with `dtype=str`. Reading back takes the envelope and holds every other column of its row to it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import FailureError, ForgeryError
from harness.market.offers import envelope as envelopes
from harness.market.offers import offer as offers
from harness.market.offers.envelope import Envelope

__all__ = ["COLUMNS", "frame_of", "from_csv", "from_parquet", "to_csv", "to_parquet"]

_LAST = "envelope"
COLUMNS = (*offers.kinds(), _LAST)


def to_csv(rows: Sequence[Envelope]) -> str:
    """Return offers as CSV (RFC 4180), every cell quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([row[name] for name in COLUMNS] for row in map(_row, rows))
    return text.getvalue()


def from_csv(text: str) -> tuple[Envelope, ...]:
    """Return the offers of such a CSV.

    Raises:
        ForgeryError: it has other columns, or a row does not follow from its envelope.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head, *rows = list(lines)
    except (csv.Error, ValueError) as err:
        what = f"not CSV with a head: {err}"
        raise ForgeryError(what) from err
    if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        what = f"its columns should be {', '.join(COLUMNS)}"
        raise ForgeryError(what)
    return tuple(_checked(dict(zip(COLUMNS, row, strict=True)), at) for at, row in enumerate(rows))


def frame_of(rows: Sequence[Envelope]) -> Any:
    """Return offers as a pandas `DataFrame`; every column is text."""
    from harness.scoring.frame import texts

    return texts(COLUMNS, map(_row, rows))


def to_parquet(rows: Sequence[Envelope], out: str | Path) -> None:
    """Write offers into a Parquet file; every column is text.

    Raises:
        FailureError: it cannot be written.
    """
    from harness.scoring.parquet import write_texts

    try:
        write_texts(Path(out), COLUMNS, map(_row, rows))
    except OSError as err:
        message = f"cannot write {str(out)!r}: {err.strerror or err}"
        raise FailureError(message) from err


def from_parquet(path: str | Path) -> tuple[Envelope, ...]:
    """Return the offers of such a Parquet file.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it has other columns, or a row does not follow from its envelope.
    """
    from harness.scoring.parquet import read_texts

    return tuple(_checked(row, at) for at, row in enumerate(read_texts(Path(path), COLUMNS)))


def _row(one: Envelope) -> dict[str, str]:
    return {**offers.plain(one.offer), _LAST: envelopes.encode(one).decode()}


def _checked(row: Mapping[str, str | None], at: int) -> Envelope:
    found = envelopes.decode((row[_LAST] or "").encode())
    for name, value in _row(found).items():
        if row[name] != value:
            what = f"says {str(row[name])[:100]!r}; its envelope says {value!r}"
            raise ForgeryError(what, f"$[{at}].{name}")
    return found
