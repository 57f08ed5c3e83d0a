"""`harness run`: measure, and end with the results, the score, the quote, and where the report lies."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.output import hushed, json_option, show, show_json, stderr
from harness.cli.shape import benchmark_names
from harness.cli.standby import stand_by
from harness.errors import FailureError, WrongAnswerError
from harness.render import text
from harness.render.quotes import quote_card
from harness.scoring import evidence

if TYPE_CHECKING:
    from harness.cluster.session import Finished

__all__ = ["run"]

_PRESETS = ("quick", "standard", "full")  # to complete them without loading what measures


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=benchmark_names)
@click.option(
    "--preset",
    default="quick",
    show_default=True,
    help="quick, standard or full: how long and how much.",
    shell_complete=lambda _ctx, _param, begun: [name for name in _PRESETS if name.startswith(begun)],
)
@click.option("--device", default="all", show_default=True, help="all, cpu or cuda:N.")
@click.option("--seed", metavar="HEX", help="What all inputs follow from; fresh by default.")
@click.option("--out", default="results", show_default=True, metavar="FOLDER", help="Where reports go.")
@click.option("--ray", metavar="ADDRESS", help="Fan out over a Ray cluster: HOST:PORT of its head, or local.")
@click.option("--budget", "budget_s", type=float, metavar="SECONDS", help="Start nothing new after this long.")
@click.option(
    "--resume", multiple=True, metavar="FILE", help="Finish a report that was cut short; may be given for each node."
)
@click.option("--key", metavar="FILE", help="Sign with this key (see keygen); or set HARNESS_KEY.")
@click.option("--node", metavar="NAME", help="Label of this node in the report; its host name by default.")
@click.option("--force", is_flag=True, help="Measure also what the preflight advises against.")
@click.option("--together", is_flag=True, help="Start each batch on all GPUs of a node at the same moment.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    names: tuple[str, ...],
    preset: str,
    device: str,
    seed: str | None,
    out: str,
    ray: str | None,
    budget_s: float | None,
    resume: tuple[str, ...],
    key: str | None,
    node: str | None,
    force: bool,
    together: bool,
    as_json: bool,
) -> None:
    """Measure the devices of this machine, or of a Ray cluster, and price them.

    NAMEs are benchmarks (see `harness list`); none means all. Every result is on disk, sealed, before the next begins: a run that is
    cut short can be resumed. Exits 1 if a benchmark failed, 3 if a device gave a wrong answer.
    """
    with _how_to_go_on(out, resume):
        if ray and (code := stand_by()) is not None:
            ctx.exit(code)
        from harness.cli.follow import follower  # brings NumPy, as what it follows does; `harness verify` does without
        from harness.cluster import session

        with (
            tempfile.TemporaryDirectory(prefix="harness-live-") as live,
            follower(stderr(), Path(live)) as progress,
            hushed(ray),
        ):
            finished = session.run(
                *names,
                preset=preset,
                device=device,
                seed=seed,
                out=out,
                ray=ray,
                budget_s=budget_s,
                resume=resume,
                key=key,
                node=node,
                force=force,
                together=together,
                progress=progress,
                live=live,
            )
    _conclude(finished, as_json=as_json)
    ctx.exit(_exit_code(finished))


@contextmanager
def _how_to_go_on(out: str, resume: Sequence[str]) -> Iterator[None]:
    """Add to an error, or to Ctrl-C, which reports it has left unfinished."""
    before = set(_unfinished(out))
    try:
        yield
    except KeyboardInterrupt:
        if again := _again(out, resume, before):
            click.echo(f"harness: what was saved stays; finish it with `harness run {again}`", err=True)
        raise
    except FailureError as err:
        again = _again(out, resume, before)
        if not again:
            raise
        msg = f"{err}; finish it with {again}"
        raise FailureError(msg) from err


def _again(out: str, resume: Sequence[str], before: Collection[str]) -> str:
    left = [file for file in resume if Path(file).exists()] or sorted(set(_unfinished(out)) - set(before))
    return " ".join(f"--resume {file}" for file in left)


def _unfinished(out: str) -> list[str]:
    return [str(path) for path in Path(out).glob("*-partial*.json")]


def _conclude(finished: Sequence[Finished], *, as_json: bool) -> None:
    reports = [f.report for f in finished]
    scores, quotes = evidence.score(*reports), evidence.quote(*reports)
    if as_json:
        entries = [{"path": str(f.path), "report": f.report} for f in finished]
        show_json({"reports": entries, "scores": scores, "quotes": quotes})
        return
    for report in reports:
        show(text.report_tables(report))
    if scores:
        show(text.score_table(scores), "")
    for quote in quotes:
        show(quote_card(quote), "")
    for f in finished:
        signed = (
            f"signed by {f.report.seal.public_key}" if f.report.seal.signature else "unsigned: see `harness keygen`"
        )
        show(f"report {f.path}  ({signed})")


def _exit_code(finished: Sequence[Finished]) -> int:
    failures = {o.failed.outcome for f in finished for o in f.report.outcomes if o.failed}
    if "wrong_answer" in failures:
        return WrongAnswerError.exit_code
    return FailureError.exit_code if failures else 0
