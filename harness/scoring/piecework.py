"""A fleet's quotes in pieces: what is priced leaves as bytes, is priced wherever there is a core, and comes back as bytes.

Who asks has the terms, once, as an order, and the reports in chunks of about two megabytes. Whoever prices a chunk needs this package and nothing else: no
file of who asked, no clock, no state that a price could depend on.

Covers: the same bytes as of quotes made in one process; a fault of a report, told as it is told there; a machine that has other data or another
version of this package, which is refused by name.
Does not cover: a machine that prices wrongly on purpose. `harness verify QUOTE REPORT` recomputes a quote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import msgspec

from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.model import Quote, Report, Terms
from harness.scoring import evidence, parquet
from harness.scoring.costs import Costs
from harness.scoring.price import TABLES, quoter_on
from harness.scoring.profiles import Profile, profile_of
from harness.scoring.quick import bytes_of, spell, unspell
from harness.scoring.reliability import Episode, episodes
from harness.scoring.tables import digest_of
from harness.scoring.terms import Basis, Deal, profile_in, terms_of
from harness.scoring.worth import shipped_market

__all__ = ["Sent", "chunks", "order", "price_chunk", "quotes_in"]

Sent = bytes | str | Path

_CHUNK_BYTES = (
    2 << 20
)  # some seven reports of eight GPUs, a tenth of a second's work: a hundred times what it costs to hand over
_ERRORS: Mapping[str, type[HarnessError]] = {kind.__name__: kind for kind in (FailureError, ForgeryError, MisuseError)}

_Piece = tuple[
    str, bytes, tuple[parquet.Row, ...] | None
]  # a report file; or the head of a Parquet file's report, and its rows


class _Order(msgspec.Struct, frozen=True):
    """What is asked of every chunk, and by whom."""

    terms: Terms
    told: dict[str, tuple[Episode, ...]]  # by a history, of each of its devices
    made_with: dict[str, str]


class _Fault(msgspec.Struct, frozen=True):
    """An error of ours, as plain text."""

    kind: str
    what: str
    path: str


class _Answer(msgspec.Struct, frozen=True):
    """The quotes of a chunk, or of its reports before the first that has a fault."""

    quotes: tuple[bytes, ...]
    fault: _Fault | None


_TO_BYTES = msgspec.msgpack.Encoder()
_ORDERS = msgspec.msgpack.Decoder(_Order, strict=True)
_CHUNKS = msgspec.msgpack.Decoder(tuple[_Piece, ...], strict=True)
_ANSWERS = msgspec.msgpack.Decoder(_Answer, strict=True)


# --- by who asks -------------------------------------------------------------------------------------------------------


def order(
    *,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[evidence.Source] = (),
) -> bytes:
    """Return what is asked, as bytes; the arguments are those of `evidence.quote`. Of the history only what it says of its devices goes along.

    Raises:
        MisuseError: there is no such profile or history.
        ForgeryError: a file of the history is not a report, or was changed.
    """
    chosen = profile_of(profile)
    told = episodes(evidence.gathered(tuple(history)), chosen)
    terms = terms_of(chosen, costs or Costs(), basis, deal or Deal())
    return _TO_BYTES.encode(_Order(terms=terms, told=told, made_with=_made_with()))


def chunks(sources: Iterable[Sent]) -> Iterator[bytes]:
    """Yield report files, folders of them, Parquet files, or reports' bytes in chunks: read one after the other, judged by nobody yet.

    A report is never split, and no more than a chunk of them is held.

    Raises:
        MisuseError: there is no such file, told when all before it was yielded.
        ForgeryError: a Parquet file is none, likewise.
    """
    held: list[_Piece] = []
    size = 0
    try:
        for piece in _pieces(sources):
            held.append(piece)
            size += len(piece[1]) + sum(len(outcome) for _, outcome in piece[2] or ())
            if size >= _CHUNK_BYTES:
                yield _TO_BYTES.encode(held)
                held, size = [], 0
    except HarnessError:
        if held:
            yield _TO_BYTES.encode(held)
        raise
    if held:
        yield _TO_BYTES.encode(held)


def _pieces(sources: Iterable[Sent]) -> Iterator[_Piece]:
    for source in sources:
        if isinstance(source, bytes):
            yield "report", source, None
        elif Path(source).suffix == ".parquet":
            for head, rows in parquet.pieces(source):
                yield str(source), head, rows
        else:
            path = Path(source)
            for file in evidence.reports_in(path) if path.is_dir() else (path,):
                yield str(file), bytes_of(file), None


def quotes_in(answer: bytes) -> Iterator[Quote]:
    """Yield the quotes of an answer.

    Raises:
        HarnessError: what was found wrong with a report of the chunk, of the kind that it is where one process prices all.
        ForgeryError: it is not an answer, or holds something that is not a quote.
    """
    try:
        found = _ANSWERS.decode(answer)
    except (msgspec.MsgspecError, RecursionError) as err:
        what = f"not an answer of whoever prices a chunk: {err}"
        raise ForgeryError(what) from err
    for data in found.quotes:
        yield unspell(data, Quote)
    if found.fault:
        raise _error(found.fault)


def _error(fault: _Fault) -> HarnessError:
    kind = _ERRORS.get(fault.kind, FailureError)
    return ForgeryError(fault.what, fault.path) if kind is ForgeryError else kind(fault.what)


# --- by who prices -----------------------------------------------------------------------------------------------------


def price_chunk(order: bytes, chunk: bytes) -> bytes:
    """Price the reports of a chunk and return its answer, whatever is wrong with them."""
    quotes: list[bytes] = []
    try:
        asked = _asked(order)
        for piece in _CHUNKS.decode(chunk):
            quotes += map(spell, asked(_report(*piece)))
    except HarnessError as err:
        what, path = (err.what, err.path) if isinstance(err, ForgeryError) else (str(err), "$")
        return _TO_BYTES.encode(_Answer(tuple(quotes), _Fault(type(err).__name__, what, path)))
    return _TO_BYTES.encode(_Answer(tuple(quotes), None))


@lru_cache(maxsize=1)  # a process prices many chunks of one order, and what they share is worked out once
def _asked(order: bytes) -> Callable[[Report], tuple[Quote, ...]]:
    given = _ORDERS.decode(order)
    ours = _made_with()
    for name, theirs in given.made_with.items():
        if ours.get(name) != theirs:
            msg = (
                f"a machine that is to price has {name} {ours.get(name, 'of none')[:12]}, and who asks has {theirs[:12]}: "
                "install the same version of this package on both"
            )
            raise FailureError(msg)
    return quoter_on(given.terms, profile_in(given.terms), given.told)


def _report(name: str, data: bytes, rows: tuple[parquet.Row, ...] | None) -> Report:
    if rows is None:
        return evidence.load_named(data, name)
    return parquet.report_of(data, rows, name, for_price=True)


def _made_with() -> dict[str, str]:
    """Return the version of this package, and the digests of the data that a price follows from."""
    data = {name: digest_of(name) for name in TABLES} | {"market_model": shipped_market().digest}
    return {"harness": metadata.version("gpu-assay")} | data
