"""`harness compare`: what changed from one report to another."""

from __future__ import annotations

from pathlib import Path

import click

from harness import codec
from harness.cli.output import json_option, show, show_json
from harness.errors import FailureError, ForgeryError
from harness.measure import compare as measure
from harness.model import Report
from harness.proof import verify as proof
from harness.render import text

__all__ = ["compare"]


@click.command()
@click.argument("baseline", metavar="A")
@click.argument("report", metavar="B")
@json_option
@click.pass_context
def compare(ctx: click.Context, *, baseline: str, report: str, as_json: bool) -> None:
    """Compare report B with the baseline A: faster, slower, the same, or not to be told.

    The baseline is a file chosen by a policy (a release, a certified run), never the last run: a lucky one would be the measure of
    all honest ones after it. Exits 1 if anything got slower, failed or throttled where it did not before, or if nothing could be compared.
    """
    a, b = _verified(baseline), _verified(report)
    found, remarks = measure.compare(a, b), measure.remarks(a, b)
    if as_json:
        show_json({"baseline": a.seal.digest, "report": b.seal.digest, "remarks": remarks, "comparisons": found})
    else:
        show(text.comparison_table(found, remarks))
    if not measure.anything_decided(found):
        message = (
            f"nothing could be compared: of {len(found)} points none is in both reports, measured and of the same work"
        )
        raise FailureError(message)
    if measure.regressed(found):
        ctx.exit(FailureError.exit_code)


def _verified(file: str) -> Report:
    (verdict,) = proof.verify(file)  # alone: two reports of one node need not follow each other
    for fault in verdict.faults:
        what = f"{fault.what} (in {file})"
        raise ForgeryError(what, fault.path)
    return codec.read(Path(file), Report)
