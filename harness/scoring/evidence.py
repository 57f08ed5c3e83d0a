"""Scores and quotes straight from report files: a report is verified before anything is concluded from it.

A fleet's results may also come as one Parquet file of `harness fleet export`, however large: it is read a batch of rows at a time, and no
more than one report of it is held. Its rows are held to their digests, but nobody signed the file: it is for one's own books.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness import codec
from harness.errors import ForgeryError
from harness.model import Quote, Report, Score
from harness.scoring.costs import Costs
from harness.scoring.fleet import Fleet
from harness.scoring.fleet import fleet as fleet_of_records
from harness.scoring.price import quote as quote_records
from harness.scoring.score import score as score_records

__all__ = ["Source", "fleet", "load", "quote", "score"]

Source = Report | bytes | str | Path


def load(source: Source) -> Report:
    """Return a report from a file or from its bytes, verified. A record is taken as it is: who holds it vouches for it.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: it is not a report, or it was changed.
    """
    if isinstance(source, Report):
        return source
    from harness.proof.verify import judge_report  # brings the signature library, which records in memory do without

    if isinstance(source, bytes):
        report, name = codec.decode(source, Report), "report"
    else:
        report, name = codec.read(Path(source), Report), str(source)
    faults = judge_report(report, name).faults
    if faults:
        what = f"{faults[0].what} (in {name})"
        raise ForgeryError(what, faults[0].path)
    return report


def score(*reports: Source, profile: str = "general") -> tuple[Score, ...]:
    """Score each device of each report, or Parquet file of reports, on a workload profile, in compute units an hour.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    return tuple(one for report in _gathered(reports) for one in score_records(report, profile=profile))


def quote(*reports: Source, costs: Costs | None = None, profile: str = "general") -> tuple[Quote, ...]:
    """Price each device of each report, or Parquet file of reports, or say why there is no price.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    return tuple(one for report in _gathered(reports) for one in quote_records(report, costs=costs, profile=profile))


def fleet(*reports: Source) -> Fleet:
    """Judge the cards of many reports, or Parquet files of reports, against their own kind.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: a file is not a report, or was changed.
    """
    return fleet_of_records(_gathered(reports))


def _gathered(sources: tuple[Source, ...]) -> Iterator[Report]:
    """Yield reports, one at a time: those of report files verified, and those of Parquet files without their plans."""
    from harness.scoring.parquet import read  # which reads reports through this module

    for source in sources:
        if isinstance(source, str | Path) and Path(source).suffix == ".parquet":
            yield from read(source)
        else:
            yield load(source)
