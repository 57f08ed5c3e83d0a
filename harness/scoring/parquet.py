"""Outcomes of many reports in one Parquet file, one row each, and back: the package's only door to pyarrow, loaded on the first call.

For programs that read a fleet's results by the column. The reports stay the truth: a row names the digest of its report and of its outcome,
and holds that outcome's own bytes, which are what is read back and must give the digest; but nobody signed the file, outcomes may be missing
from it, and its other columns are for other programs: nothing here reads them.

A column is called as in the records, the name of a nested record before that of its field (`work_flops`, `energy_joules`). `params` is JSON
text, keys sorted; `value`, `low` and `high` are in `unit`; `ended` is `measured`, `skipped`, or how it failed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import operator
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from harness import codec
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.model import Attempt, Job, Measurement, Outcome, Report
from harness.proof.limits import head_faults
from harness.scoring.brief import brief
from harness.scoring.evidence import Source, load
from harness.scoring.frame import value_of
from harness.scoring.quick import canonical
from harness.units import quantity

__all__ = ["Row", "export", "pieces", "read", "read_texts", "report_of", "write_texts"]

T = TypeVar("T")
Row = tuple[str, bytes]  # the digest of an outcome, and its bytes

_ROWS = 1024  # read at once
_HEAD = msgspec.json.Decoder(Report, strict=True)
_OUTCOME = msgspec.json.Decoder(Outcome, strict=True)
_CONTEXT: Mapping[str, Any] = {
    "report_digest": str,
    "outcome_digest": str,
    "node": str,
    "created_at": str,
    "sealed_at": str,
    "preset": str,
    "signed_by": str,
    "head": str,  # the report without its plan, its outcomes, and their digests
    "emulated": bool,
    "device_name": str,
    "device_kind": str,
    "driver": str,
    "power_limit_w": float,
    "ended": str,
    "attempts": tuple[Attempt, ...],
    "outcome": bytes,  # its canonical bytes: what is read back, and what its digest is of
    "value": float,
    "low": float,
    "high": float,
    "unit": str,
}
_READ = ("report_digest", "outcome_digest", "outcome", "head")
_SAME = ("report_digest", "head")  # the same in all rows of a report: read as a dictionary


def export(*reports: Source, out: str | Path) -> int:
    """Write the outcomes of reports, verified one after the other, into a Parquet file, and return how many there are.

    The file appears when it is whole, in place of one that was there.

    Raises:
        MisuseError: there is no such report.
        ForgeryError: one is not a report, or it was changed.
        FailureError: the file cannot be written.
    """
    path = Path(out)
    if not path.name:
        msg = f"{str(out)!r} is a folder: name a file in it"
        raise MisuseError(msg)
    beside = path.with_name(f"{path.name}.partial")
    try:
        count = _write(beside, map(load, reports))
        beside.replace(path)
    except OSError as err:
        msg = f"cannot write {str(out)!r}: {err.strerror or err}"
        raise FailureError(msg) from err
    finally:
        beside.unlink(missing_ok=True)
    return count


def read(path: str | Path, *, for_price: bool = False) -> Iterator[Report]:
    """Yield the reports of a Parquet file one after the other, without their plans and with the seals they had.

    Args:
        path: of the file.
        for_price: read of each outcome only what a price asks for.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it is not a file that `export` wrote, or a row does not give the outcome that it names.
    """
    for head, rows in pieces(path):
        yield report_of(head, rows, str(path), for_price=for_price)


def pieces(path: str | Path) -> Iterator[tuple[bytes, tuple[Row, ...]]]:
    """Yield of each report of a Parquet file the bytes of its head, and its rows: what `report_of` makes a report of, and judges.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it is not a file that `export` wrote.
    """
    for _, group in itertools.groupby(_rows(Path(path)), key=operator.attrgetter("report_digest")):
        rows = list(group)
        head = rows[0].heads[rows[0].at].as_py().encode()
        yield head, tuple((row.outcome_digest, row.outcome) for row in rows)


def report_of(head: bytes, rows: Sequence[Row], where: str, *, for_price: bool = False) -> Report:
    """Return a report from a piece of the Parquet file `where`, without its plan and with the seal it had.

    Raises:
        ForgeryError: its head is none, or a row does not give the outcome that it names.
    """
    report = _decoded(head, _HEAD)
    for fault in head_faults(report):
        what = f"{fault.path}: {fault.what}"
        raise ForgeryError(what, where)
    for digest, outcome in rows:
        if hashlib.sha256(outcome).hexdigest() != digest:
            what = f"a row does not give the outcome that it names, {digest[:8]}"
            raise ForgeryError(what, where)
    outcomes = tuple((brief(outcome) if for_price else None) or _decoded(outcome, _OUTCOME) for _, outcome in rows)
    return replace(report, outcomes=outcomes, seal=replace(report.seal, outcomes=tuple(digest for digest, _ in rows)))


def write_texts(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows of text into a file whose columns are all text."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """Yield the rows of such a file.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it is no Parquet file, or has other columns than these, all text.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(pa.schema([(name, pa.string()) for name in columns])):
                what = f"its columns should be text: {', '.join(columns)}"
                raise ForgeryError(what, str(path))
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as err:
        what = f"not a whole Parquet file: {err}"
        raise ForgeryError(what, str(path)) from err
    except OSError as err:
        msg = f"cannot read {str(path)!r}: {err.strerror or err}"
        raise MisuseError(msg) from err


# --- columns -----------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column, and where a measurement holds what is in it."""

    name: str
    path: tuple[str, ...]
    hint: Any


@cache
def _columns() -> tuple[_Column, ...]:
    return tuple(_columns_of(Measurement, (), ""))


def _columns_of(record: Any, path: tuple[str, ...], prefix: str) -> Iterator[_Column]:
    for name, hint in get_type_hints(record).items():
        inner, here = _bare(hint), (*path, name)
        if dataclasses.is_dataclass(inner):
            yield from _columns_of(inner, here, "" if inner is Job else f"{prefix}{name}_")
        else:
            yield _Column(prefix + name, here, hint)


def _bare(hint: Any) -> Any:
    """Return a type without its None."""
    if get_origin(hint) in {Union, types.UnionType}:
        (bare,) = (arg for arg in get_args(hint) if arg is not type(None))
        return bare
    return hint


def _arrow(hint: Any) -> Any:
    """Return the Arrow type that holds values of a type."""
    import pyarrow as pa

    bare = _bare(hint)
    if dataclasses.is_dataclass(bare):
        return pa.struct([(name, _arrow(inner)) for name, inner in get_type_hints(bare).items()])
    match get_origin(bare):
        case origin if origin is tuple:
            return pa.list_(_arrow(get_args(bare)[0]))
        case origin if origin is Literal or origin is Mapping:  # a mapping is JSON text
            return pa.string()
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}[bare]


def _schema(as_dictionary: Sequence[str] = ()) -> Any:
    import pyarrow as pa

    fields = [*_CONTEXT.items(), *((c.name, c.hint) for c in _columns())]
    types_ = {name: _arrow(hint) for name, hint in fields}
    types_ |= {name: pa.dictionary(pa.int32(), pa.string()) for name in as_dictionary}
    return pa.schema(types_.items(), metadata={"schema": "harness.parquet/2"})


def _packed(value: Any, hint: Any) -> Any:
    """Turn mappings inside a plain value into text."""
    bare = _bare(hint)
    if value is None:
        return None
    if get_origin(bare) is Mapping:
        return json.dumps(value, sort_keys=True)
    if get_origin(bare) is tuple and dataclasses.is_dataclass(get_args(bare)[0]):
        inner = _hints(get_args(bare)[0])
        return [{k: _packed(v, inner[k]) for k, v in one.items()} for one in value]
    return value


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


# --- writing -----------------------------------------------------------------------------------------------------------


def _write(path: Path, reports: Iterable[Report]) -> int:
    import pyarrow as pa
    from pyarrow import parquet as pq

    schema, count, written, rows = _schema(), 0, set[str](), list[dict[str, Any]]()
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for report in reports:
                if report.seal.digest not in written:  # given twice, it is there once
                    rows += _rows_of(report)
                written.add(report.seal.digest)
                if len(rows) >= _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    count, rows = count + len(rows), []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
        file.flush()
        os.fsync(file.fileno())
    return count


def _rows_of(report: Report) -> Iterator[dict[str, Any]]:
    if len(report.seal.outcomes) != len(report.outcomes):
        what = f"names {len(report.seal.outcomes)} outcomes; the report has {len(report.outcomes)}"
        raise ForgeryError(what, "$.seal.outcomes")
    head = replace(report, plan=(), outcomes=(), seal=replace(report.seal, outcomes=()))
    context = {
        "report_digest": report.seal.digest,
        "node": report.node.name,
        "created_at": report.created_at,
        "sealed_at": report.sealed_at,
        "preset": report.preset,
        "signed_by": report.seal.public_key,
        "head": codec.encode(head).decode(),
    }
    devices = {d.uuid: d for d in report.devices}
    for outcome, digest in zip(report.outcomes, report.seal.outcomes, strict=True):
        row = {**context, "outcome_digest": digest, "outcome": canonical(outcome, digest), **_row(outcome)}
        device = devices[row["device_uuid"]]
        row |= {"emulated": device.emulated, "device_name": device.name, "device_kind": device.kind}
        yield row | {"driver": device.driver, "power_limit_w": device.power_limit_w}


def _row(outcome: Outcome) -> dict[str, Any]:
    held = outcome.measurement or outcome.skipped or outcome.failed
    plain = codec.plain(held)
    row = {c.name: _packed(_at(plain, c.path), c.hint) for c in _columns()}
    row["ended"] = "measured" if outcome.measurement else outcome.failed.outcome if outcome.failed else "skipped"
    row["attempts"] = codec.plain(outcome.attempts)
    if outcome.measurement:
        m = outcome.measurement
        low, high = sorted(value_of(m, t) for t in (m.interval.low_s, m.interval.high_s))
        found = quantity(m.work, m.metric, m.time_s)
        row |= {"value": found.value, "unit": found.unit, "low": low, "high": high}
    return row


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = None if value is None else value.get(name)
    return value


# --- reading -----------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """What is read of a row: the rest of its columns say the same again, for other programs."""

    report_digest: str
    outcome_digest: str
    outcome: bytes
    heads: Any  # the column of its batch: a report's head is taken out once, not for each row
    at: int


def _rows(path: Path) -> Iterator[_Row]:
    import pyarrow as pa
    from pyarrow import parquet as pq

    try:
        with pq.ParquetFile(path, read_dictionary=list(_SAME)) as file:
            if not file.schema_arrow.equals(_schema(_SAME)):
                what = "its columns are not those that `harness fleet export` writes"
                raise ForgeryError(what, str(path))
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(_READ), use_threads=False):
                *columns, heads = (batch.column(name) for name in _READ)
                for at, (report, digest, outcome) in enumerate(zip(*(c.to_pylist() for c in columns), strict=True)):
                    yield _Row(report, digest, outcome, heads, at)
    except pa.ArrowInvalid as err:
        what = f"not a whole Parquet file: {err}"
        raise ForgeryError(what, str(path)) from err
    except OSError as err:
        msg = f"cannot read {str(path)!r}: {err.strerror or err}"
        raise MisuseError(msg) from err


def _decoded(data: bytes, reader: msgspec.json.Decoder[T]) -> T:
    """Decode what a digest names, or nobody signed: how it is spelled is not judged again."""
    try:
        return reader.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return codec.decode(data, reader.type)  # says what is wrong, and where
