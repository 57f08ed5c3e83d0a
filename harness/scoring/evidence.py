"""Scores and quotes straight from report files: a report is verified before anything is concluded from it."""

from __future__ import annotations

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
    """Score each device of each report on a workload profile, in compute units an hour.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    return score_records(*map(load, reports), profile=profile)


def quote(*reports: Source, costs: Costs | None = None, profile: str = "general") -> tuple[Quote, ...]:
    """Price each device of each report, or say why there is no price.

    Raises:
        MisuseError: there is no such file or profile.
        ForgeryError: a file is not a report, or was changed.
    """
    return quote_records(*map(load, reports), costs=costs, profile=profile)


def fleet(*reports: Source) -> Fleet:
    """Judge the cards of many reports against their own kind; Parquet files of `export` are read, too, though nobody signed them.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: a file is not a report, or was changed.
    """
    from harness.scoring.parquet import gather  # which reads reports through this module

    return fleet_of_records(gather(*reports))
