"""Scores and quotes straight from report files: a report is verified before anything is concluded from it.

A fleet's results may also come as one Parquet file of `harness fleet export`, however large: it is read a batch of rows at a time, and no
more than one report of it is held. Its rows are held to their digests, but nobody signed the file: it is for one's own books.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import Quote, Report, Score
from harness.scoring.costs import Costs
from harness.scoring.fleet import Fleet
from harness.scoring.fleet import fleet as fleet_of_records
from harness.scoring.price import quoter
from harness.scoring.profiles import Profile
from harness.scoring.score import score as score_records
from harness.scoring.terms import Basis, Deal
from harness.scoring.worth import Market

__all__ = ["Source", "fleet", "gathered", "load", "load_named", "load_quickly", "price", "quote", "reports_in", "score"]

Source = Report | bytes | str | Path


def load(source: Source) -> Report:
    """Return a report from a file or from its bytes, verified. A record is taken as it is: who holds it vouches for it.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it is not a report, or it was changed.
    """
    if isinstance(source, Report):
        return source
    if isinstance(source, bytes):
        return _verified(source, "report")
    from harness.scoring.quick import bytes_of

    return _verified(bytes_of(Path(source)), str(source))


def load_named(data: bytes, name: str) -> Report:
    """Return a report from the bytes of a file of that name, verified: the fast way, or else the long one, which says what is wrong.

    Raises:
        ForgeryError: it is not a report, or it was changed; names the file.
    """
    from harness.scoring.quick import load_fast

    return load_fast(data) or _verified(data, name)


def _verified(data: bytes, name: str) -> Report:
    from harness.proof.verify import judge_report  # brings the signature library, which records in memory do without

    try:
        report = codec.decode(data, Report)
    except ForgeryError as err:
        what = f"{err.what} (in {name})"
        raise ForgeryError(what, err.path) from err
    faults = judge_report(report, name).faults
    if faults:
        what = f"{faults[0].what} (in {name})"
        raise ForgeryError(what, faults[0].path)
    return report


def score(*reports: Source, profile: str | Profile = "general") -> tuple[Score, ...]:
    """Score each device of each report, or Parquet file of reports, on a workload profile, in compute units an hour.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    return tuple(one for report in gathered(reports) for one in score_records(report, profile=profile))


def quote(  # noqa: PLR0913 - each is a part of what is asked
    *reports: Source,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[Source] = (),
    market: Market | None = None,
) -> tuple[Quote, ...]:
    """Price each device of each report, Parquet file of reports, or folder of reports, or say why there is no price.

    Args:
        reports: files, bytes or records.
        costs: what the owner says his costs are; else defaults, each with its grounds.
        profile: the workload to count cycles for: a name, a TOML file, or a profile.
        basis: `market` for what the market pays, `cost` for what the owner needs.
        deal: who sells, when, and how.
        history: earlier reports; a device's reliability is taken from those that have it and were sealed before the one that is priced.
        market: a stand-in for the shipped market model.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    past = tuple(gathered(tuple(history)))
    asked = quoter(costs=costs, profile=profile, basis=basis, deal=deal, history=past, market=market)
    return tuple(one for report in gathered(reports, for_price=True) for one in asked(report))


def price(  # noqa: D417, PLR0913 - the rest is described by `quote`
    report: Source,
    *,
    device: str | None = None,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[Source] = (),
    market: Market | None = None,
) -> Quote:
    """Price one device of a report, given as a file, its bytes, or a record; the other arguments are those of `quote`.

    Args:
        report: verified first, unless it is a record.
        device: its UUID; may be left out where the report has one device.

    Raises:
        MisuseError: there is no such file, device or profile, or several devices and none was named.
        ForgeryError: it is not a report, or was changed.
    """
    quotes = quote(report, costs=costs, profile=profile, basis=basis, deal=deal, history=history, market=market)
    found = [one for one in quotes if device in {None, one.device_uuid}]
    if len(found) != 1:
        known = ", ".join(one.device_uuid for one in quotes) or "none with a result"
        message = f"device {device!r}; the report has {known}: name one"
        raise MisuseError(message)
    return found[0]


def fleet(*reports: Source) -> Fleet:
    """Judge the cards of many reports, or Parquet files of reports, against their own kind.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: a file is not a report, or was changed.
    """
    return fleet_of_records(gathered(reports))


def gathered(sources: tuple[Source, ...], *, for_price: bool = False) -> Iterator[Report]:
    """Yield reports, one at a time: those of report files verified, and those of Parquet files without their plans."""
    from harness.scoring.parquet import read  # which reads reports through this module

    for source in sources:
        if isinstance(source, str | Path) and Path(source).suffix == ".parquet":
            yield from read(source, for_price=for_price)
        elif isinstance(source, str | Path) and Path(source).is_dir():
            yield from map(load_quickly, reports_in(Path(source)))
        else:
            yield load_quickly(source)


def load_quickly(source: Source) -> Report:
    """Return a report the fast way, or else the long one, which says what is wrong."""
    if isinstance(source, Report):
        return source
    if isinstance(source, bytes):
        return load_named(source, "report")
    from harness.scoring.quick import bytes_of

    return load_named(bytes_of(Path(source)), str(source))


def reports_in(folder: Path) -> list[Path]:
    """Return the files of a folder that are named as reports are, in the order of their names, which is that of time.

    Raises:
        MisuseError: there are none.
    """
    found = sorted(folder.glob("[0-9]*.json"))
    if not found:
        message = f"no report in {str(folder)!r}: none of its files is named as `harness run` names them"
        raise MisuseError(message)
    return found
