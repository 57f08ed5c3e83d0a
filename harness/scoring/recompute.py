"""A quote recomputed from its report by somebody else: the same to the last digit, or a reason why not.

Proven by an accepted quote: it follows from the report, its own terms and this package's data, all named by digest.
Not proven: that the report is true, that the history it names is whole, or that the terms are those anybody agreed to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import codec
from harness.errors import ForgeryError, HarnessError
from harness.model import Fault, Quote, Report, Verdict
from harness.scoring.evidence import Source, load_quickly
from harness.scoring.price import requote
from harness.scoring.reliability import episodes, record_of
from harness.scoring.terms import profile_in
from harness.scoring.worth import Market

__all__ = ["is_quote", "recompute"]

_MARK = b'"schema":"harness.quote/'


def is_quote(data: bytes) -> bool:
    """Tell whether a document says that it is a quote, whatever its version."""
    return _MARK in data and b'"schema":"harness.report/' not in data


def recompute(quote: Quote | bytes | str | Path, *reports: Source, market: Market | None = None) -> Verdict:
    """Compute a quote again from its report and compare every byte.

    Args:
        quote: a record, its bytes, or a file.
        reports: the report it names must be among them.
        market: a stand-in for the shipped market model.

    Raises:
        MisuseError: a file cannot be read. Faults are returned, not raised.
    """
    subject = str(quote) if isinstance(quote, str | Path) else "quote"
    try:
        given = _read(quote)
        faults = tuple(_faults(given, reports, market))
    except ForgeryError as err:
        return _verdict(subject, None, (Fault(path=err.path, what=err.what),))
    return _verdict(subject, given, faults)


def _read(quote: Quote | bytes | str | Path) -> Quote:
    if isinstance(quote, Quote):
        return quote
    return codec.decode(quote, Quote) if isinstance(quote, bytes) else codec.read(Path(quote), Quote)


def _faults(given: Quote, sources: Sequence[Source], market: Market | None) -> Iterator[Fault]:
    known = {report.seal.digest: report for report in map(load_quickly, sources)}
    report = known.get(given.report_digest)
    if report is None:
        yield Fault(path="$.report_digest", what=f"its report, {given.report_digest[:12]}..., is not among those given")
        return
    try:
        again = requote(report, given.device_uuid, given.terms, market=market)
    except (HarnessError, ArithmeticError, ValueError) as err:
        yield Fault(path="$.terms", what=f"cannot be priced again: {err}")
        return
    yield from _record_faults(given, known)
    others = [n for n in sorted({*given.digests, *again.digests}) if given.digests.get(n) != again.digests.get(n)]
    for name in others:
        made, here = given.digests.get(name, "no such data"), again.digests.get(name, "no such data")
        what = f"made with {name} {made[:12]}..., this package has {here[:12]}...: recompute it with the data that it names"
        yield Fault(path=f"$.digests.{name}", what=what)
    if not others and codec.encode(again) != codec.encode(given):
        yield from _differences(codec.plain(given), codec.plain(again))


def _record_faults(given: Quote, known: Mapping[str, Report]) -> Iterator[Fault]:
    """Name a record that does not follow from the history it names, where that is at hand."""
    record = given.terms.record
    if record is None or not set(record.report_digests) <= set(known):
        return
    told = episodes((known[digest] for digest in record.report_digests), profile_in(given.terms))
    again = record_of(known[given.report_digest], told.get(given.device_uuid, ()))
    if again != record:
        yield Fault(path="$.terms.record", what=f"says {_short(record)}, its reports give {_short(again)}")


def _differences(given: dict[str, object], again: dict[str, object]) -> Iterator[Fault]:
    for name, value in given.items():
        if value != again[name]:
            what = f"says {_short(value)}, computed again it is {_short(again[name])}"
            yield Fault(path=f"$.{name}", what=what)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line of a terminal


def _verdict(subject: str, given: Quote | None, faults: tuple[Fault, ...]) -> Verdict:
    proven = (
        "the price, its interval and each line follow from the report, the terms and the data, to the last digit",
    )
    record = given.terms.record if given else None
    open_questions = [
        "that the report is true: see what `harness verify` says of it",
        f"the history it names, unless those {len(record.report_digests)} reports were given, too" if record else None,
    ]
    return Verdict(
        subject=subject,
        digest=codec.digest(given) if given else None,
        accepted=not faults,
        signed_by=None,
        complete=given is not None,
        faults=faults,
        proven=() if faults else proven,
        not_proven=tuple(filter(None, open_questions)),
    )
