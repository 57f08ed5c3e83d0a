"""`harness serve-bench`: what an endpoint gives its users, and whether its replies are what they seem."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from harness import codec
from harness.cli.output import json_option, on_one_line, show, show_json, stderr
from harness.errors import FailureError, MisuseError, WrongAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from harness.inference.serving import Plan

__all__ = ["serve_bench"]


class _Numbers(click.ParamType[Any]):
    """Positive numbers with commas between them."""

    name = "numbers"

    def __init__(self, kind: type[int | float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if not found or not all(0 < number < 1e9 for number in found):  # noqa: PLR2004 - far beyond any server
            self.fail(
                f"{value!r} is not positive numbers, such as {'1,4,16' if self._kind is int else '0.5,2'}", param, ctx
            )
        return found


_positive = click.IntRange(min=1, max=1_000_000)
_recorded = click.IntRange(min=1, max=1 << 16)  # what an array of the report can hold


@click.command("serve-bench")
@click.argument("url")
@click.option("--model", metavar="NAME", help="What to ask for; by default the only model that the endpoint lists.")
@click.option(
    "--users", type=_Numbers(int), metavar="N,...", help="So many users, each waiting for its reply.  [default: 1,4,16]"
)
@click.option(
    "--rate", "rates", type=_Numbers(float), metavar="R,...", help="Independent arrivals at so many a second."
)
@click.option("--offline", is_flag=True, help="All requests at once.")
@click.option("--search", is_flag=True, help="Find the highest rate of arrivals within the SLO.")
@click.option(
    "--slo", default="standard", show_default=True, help="standard, interactive, local, batch, or ttft=S,tpot=S,e2e=S."
)
@click.option(
    "--requests",
    type=_recorded,
    default=22,
    show_default=True,
    help="Of each repetition of each load; at least 3 a user.",
)
@click.option("--repeat", type=_recorded, default=3, show_default=True, help="Independent repetitions.")
@click.option(
    "--input-tokens", type=_positive, default=256, show_default=True, help="Of a prompt, by the server's count."
)
@click.option("--output-tokens", type=_recorded, default=64, show_default=True, help="Of a reply.")
@click.option("--cap", type=_positive, help="Requests in flight at most, with --rate, --offline and --search.")
@click.option(
    "--timeout", "timeout_s", type=float, default=120.0, show_default=True, metavar="SECONDS", help="Of a request."
)
@click.option("--price", metavar="USD", help="What the server costs per hour.")
@click.option("--completions", is_flag=True, help="Use /completions instead of /chat/completions.")
@click.option("--no-audit", is_flag=True, help="Leave the probes for cheating out.")
@click.option(
    "--energy", metavar="DEVICE", help="Count the joules of this machine's device that serves: cuda:N or cpu."
)
@click.option("--api-key", metavar="FILE", help="File that holds the endpoint's key; or set HARNESS_API_KEY.")
@click.option("--seed", metavar="HEX", help="What prompts and arrivals follow from; fresh by default.")
@click.option(
    "--out",
    default="results/serving",
    show_default=True,
    metavar="FOLDER",
    help="Where the record goes, apart from reports.",
)
@json_option
@click.pass_context
def serve_bench(
    ctx: click.Context,
    /,
    *,
    url: str,
    model: str | None,
    completions: bool,
    api_key: str | None,
    energy: str | None,
    out: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what the OpenAI-compatible endpoint at URL gives its users.

    Latencies count from when a request should have been sent, failures took forever, and a percentile is given only where there
    were requests enough for it. Probes look for cached, held back, short and miscounted replies. Nothing is reported where this
    client was the bottleneck.

    \b
    Exits 1 if nothing can be reported, 3 if an audit flagged the server. HARNESS_API_KEY holds the key, as --api-key does.
    """
    from harness.inference.serve_bench import serve_bench as bench
    from harness.render import serving as render

    plan = _plan(**options)
    key, folder = _key(api_key), _folder(out)
    console = stderr()
    bar: _Bar | _Lines = _Bar(console) if console.is_terminal else _Lines(console)
    with ExitStack() as stack:
        joules = _joules(energy, stack)
        stack.enter_context(bar)
        report = bench(url, plan, model=model, key=key, chat=not completions, progress=bar, joules=joules)
    data = codec.encode(report)
    path = folder / f"serve-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{codec.digest(data)[:8]}.json"
    path.write_bytes(data)
    if as_json:
        show_json({"path": str(path), "digest": codec.digest(data), "report": report})
    else:
        show(render.serve_report(report), f"report {path}  (SHA-256 {codec.digest(data)})")
    if any(finding.state == "flagged" for finding in report.findings):
        ctx.exit(WrongAnswerError.exit_code)


def _plan(
    *,
    users: tuple[int, ...] | None,
    rates: tuple[float, ...] | None,
    offline: bool,
    search: bool,
    slo: str,
    requests: int,
    repeat: int,
    input_tokens: int,
    output_tokens: int,
    cap: int | None,
    timeout_s: float,
    price: str | None,
    no_audit: bool,
    seed: str | None,
) -> Plan:
    from harness.cluster.plan import seed_or_fresh
    from harness.inference.serving import Plan
    from harness.inference.slo import find_slo

    chosen = users or (() if rates or offline or search else (1, 4, 16))
    if not 0 < timeout_s < 1e9:  # noqa: PLR2004 - a number, and finite
        msg = f"timeout {timeout_s!r} is not a positive number of seconds, such as 60"
        raise MisuseError(msg)
    return Plan(
        seed=seed_or_fresh(seed),
        users=chosen,
        rates_per_s=rates or (),
        offline=offline,
        search=search,
        requests_count=requests,
        repetitions_count=repeat,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        slo=find_slo(slo),
        cap_count=cap,
        timeout_s=timeout_s,
        usd_per_hour=_price(price),
        audits=not no_audit,
    )


def _price(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal("NaN")
    if not (price.is_finite() and price > 0):
        msg = f"price {text!r} is not a positive number of USD per hour, such as 0.40"
        raise MisuseError(msg)
    return price


def _key(file: str | None) -> str | None:
    """Read the endpoint's key. It is never an argument, which others on the machine could read."""
    from harness.inference.client import checked_key

    if file is None:
        given = os.environ.get("HARNESS_API_KEY")
        return checked_key(given, "HARNESS_API_KEY") if given else None
    try:
        return checked_key(Path(file).read_text(), repr(file))
    except (OSError, UnicodeDecodeError) as err:
        msg = f"cannot read the key {file!r}: {getattr(err, 'strerror', None) or 'it is no text'}"
        raise MisuseError(msg) from err


def _folder(out: str) -> Path:
    """Make the folder now: a benchmark of minutes should not end in a path that cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        msg = f"cannot write to {out!r}: {err.strerror}; name a folder you may write to with --out"
        raise MisuseError(msg) from err
    if not os.access(folder, os.W_OK):
        msg = f"cannot write to {out!r}; name a folder you may write to with --out"
        raise MisuseError(msg)
    return folder


def _joules(selector: str | None, stack: ExitStack) -> Callable[[], float | None]:
    """Return what reads the energy counter of one of this machine's devices."""
    if selector is None:
        return lambda: None
    from harness.cluster import session
    from harness.cluster.plan import choose
    from harness.device.rapl import CpuSensors
    from harness.device.sensors import NvmlSensors

    chosen = choose(session.devices(None), selector)
    if len(chosen) != 1:
        msg = f"{selector!r} is {len(chosen)} devices; name the one that serves, such as cuda:0"
        raise MisuseError(msg)
    device = chosen[0]
    sensors = CpuSensors() if device.kind == "cpu" else NvmlSensors(device.uuid)
    stack.callback(sensors.close)
    if device.sensors.get("energy") != "ok":
        msg = f"{selector} does not count its energy: {device.sensors.get('energy', 'not_supported')}"
        raise FailureError(msg)
    return lambda: sensors.read(0.0).energy_j


class _Lines:
    """Progress as plain lines, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        sys.stderr.flush()

    def begins(self, what: str, steps: int) -> None:
        self._console.print(on_one_line(f"{what} ({steps})"), markup=False, highlight=False, soft_wrap=True)

    def step(self) -> None:
        """A log wants to know what is done, not each request."""


class _Bar:
    """Progress as one moving line, for a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        # Drawn four times a second, in a thread of its own: the load generator must not wait for a terminal.
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=4)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begins(self, what: str, steps: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(on_one_line(what), total=steps)

    def step(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)
