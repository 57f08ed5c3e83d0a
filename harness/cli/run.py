"""`harness run`: measure, and end with the results, the score, the quote, and where the report lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from harness.cli.output import hushed, json_option, on_one_line, show, show_json, stderr
from harness.cli.standby import stand_by
from harness.errors import FailureError, WrongAnswerError
from harness.model import Device, Job, Outcome
from harness.render import text
from harness.render.quotes import quote_card
from harness.scoring import evidence

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cluster.session import Finished

__all__ = ["run"]

_SHOWN = 2  # of the jobs that run; on a fleet there are hundreds


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--preset", default="quick", show_default=True, help="quick, standard or full: how long and how much.")
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
        from harness.cluster import session  # brings NumPy, which `harness verify` does without

        console = stderr()
        with _Bar(console) if console.is_terminal else _Lines(console) as progress, hushed(ray):
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
            )
    _conclude(finished, as_json=as_json)
    ctx.exit(_exit_code(finished))


@contextmanager
def _how_to_go_on(out: str, resume: Sequence[str]) -> Iterator[None]:
    """Add to an error which reports it has left unfinished."""
    before = set(_unfinished(out))
    try:
        yield
    except FailureError as err:
        left = [file for file in resume if Path(file).exists()] or sorted(set(_unfinished(out)) - before)
        if not left:
            raise
        msg = f"{err}; finish it with {' '.join(f'--resume {file}' for file in left)}"
        raise FailureError(msg) from err


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


class _Lines:
    """Progress as plain lines, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        sys.stderr.flush()

    def planned(self, devices: Sequence[Device], jobs: Sequence[Job], already: int) -> None:
        self._total, self._done = len(jobs) + already, already
        resumed = f", {already} already done" if already else ""
        names = ", ".join(f"{d.selector} ({d.name})" for d in devices)
        self._console.print(f"{self._total} jobs on {names}{resumed}", markup=False, highlight=False, soft_wrap=True)

    def started(self, job: Job) -> None:
        """A log wants results; what has begun is not one."""

    def ended(self, outcome: Outcome) -> None:
        self._done += 1
        line = f"[{self._done}/{self._total}] {on_one_line(text.outcome_line(outcome))}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    """Progress as one moving line, for a terminal; results scroll above it."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # what Ray's threads print must not come to light here
            redirect_stderr=False,
        )
        self._task: TaskID | None = None
        self._running: list[Job] = []

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("looking at the devices", total=None)
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def _update(self, **fields: object) -> None:
        if self._task is not None:
            self._progress.update(self._task, **fields)  # type: ignore[arg-type]

    def planned(self, devices: Sequence[Device], jobs: Sequence[Job], already: int) -> None:
        self._update(total=len(jobs) + already, completed=already, description=f"{len(devices)} device(s)")

    def started(self, job: Job) -> None:
        self._running.append(job)
        self._show_running()

    def _show_running(self) -> None:
        shown = [text.job_line(job) for job in self._running[:_SHOWN]]
        more = len(self._running) - len(shown)
        devices = len({job.device_uuid for job in self._running})
        rest = [f"{more} more on {devices} device(s)"] if more else []
        self._update(description=" | ".join([*shown, *rest]) or "writing")

    def ended(self, outcome: Outcome) -> None:
        self._progress.console.print(on_one_line(text.outcome_line(outcome)), markup=False, highlight=False)
        job = text.job_of(outcome)
        self._running = [other for other in self._running if other != job]
        self._update(advance=1)
        self._show_running()
