"""Whether a report is whole, who vouches for it, and what nobody has proven."""

from __future__ import annotations

from harness.model import Report
from harness.proof.verify import judge_report
from harness.render.report.views import Fact, SealView
from harness.render.report.words import tame

__all__ = ["trust"]


_ROWS = "Rows of a Parquet file: each gives the outcome that its digest names, and nobody signed the file"


def trust(report: Report) -> SealView:
    """Judge a report's seal anew, and say what it establishes and what it does not."""
    if report.outcomes and not report.plan:
        return _of_rows(report)
    verdict = judge_report(report, "report")
    facts = [
        Fact("report", report.seal.digest),
        Fact("sealed", tame(report.sealed_at)),
        Fact("signed by", verdict.signed_by or "nobody"),
        Fact("report before it", report.previous or "none named"),
        Fact("outcomes", f"{len(report.outcomes)} of {len(report.plan)} planned"),
    ]
    if verdict.faults:
        faults = "; ".join(tame(f"{f.path}: {f.what}") for f in verdict.faults[:3])
        return SealView(
            tone="bad",
            headline=f"Refused: {faults}",
            proven=(),
            not_proven=tuple(map(tame, verdict.not_proven)),
            facts=tuple(facts),
        )
    signed = f"signed by {verdict.signed_by[:16]}…" if verdict.signed_by else "unsigned: anybody could have written it"
    return SealView(
        tone="good" if verdict.signed_by else "fair",
        headline=f"Whole and unchanged, {signed}",
        proven=tuple(map(tame, verdict.proven)),
        not_proven=tuple(map(tame, verdict.not_proven)),
        facts=tuple(facts),
    )


def _of_rows(report: Report) -> SealView:
    """Say what is known of a report that came from a Parquet file, which keeps neither its plan nor its signature's bytes."""
    return SealView(
        tone="fair",
        headline=_ROWS,
        proven=("no row was changed since it was written with its digest",),
        not_proven=(
            "that these are all outcomes of the report, and who made it: `harness verify` tells of the report's own file",
        ),
        facts=(
            Fact("report", report.seal.digest),
            Fact("sealed", tame(report.sealed_at)),
            Fact("outcomes", str(len(report.outcomes))),
        ),
    )
