"""`harness verifier` and `harness prover`: challenges over a network, with the verifier holding the clock."""

from __future__ import annotations

import click

from harness.cli.output import json_option, on_one_line, show, show_json
from harness.errors import ForgeryError
from harness.render import text

__all__ = ["prover", "verifier"]


@click.group()
def verifier() -> None:
    """Challenge providers over HTTP, all of them at one moment, by your own clock."""


@verifier.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; others reach 127.0.0.1 never."
)
@click.option("--port", default=8440, show_default=True, help="0 takes a free one.")
@click.option(
    "--mode", default="int8", show_default=True, help="Kind of number: int8, float16, bfloat16, float32, float64."
)
@click.option("--n", default=16384, show_default=True, help="Matrices are n x n.")
@click.option("--steps", default=256, show_default=True, help="Products in a chain; as many states stay in memory.")
@click.option("--openings", default=128, show_default=True, help="Rows that are looked at.")
@click.option(
    "--scans", default=0, show_default=True, help="Times that all states are read again, to show they are in memory."
)
@click.option("--slot", "slot_s", default=300.0, show_default=True, help="Seconds from opening to opening.")
@click.option("--close", "closes_s", default=2.0, show_default=True, help="Seconds before an opening when claims end.")
@click.option(
    "--valid", "valid_for_s", default=120, show_default=True, help="Seconds after an opening when answers end."
)
@click.option("--slack", default=1.25, show_default=True, help="By how much longer than claimed a device may take.")
@click.option("--pings", default=0, show_default=True, help="To each device during its work.")
@click.option(
    "--ping-most", "ping_most_s", default=0.5, show_default=True, help="Seconds a ping may take above the shortest."
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="HEX",
    help="A public key that may claim; more than once; without, anybody.",
)
def serve(
    *,
    host: str,
    port: int,
    mode: str,
    n: int,
    steps: int,
    openings: int,
    scans: int,
    slot_s: float,
    closes_s: float,
    valid_for_s: int,
    slack: float,
    pings: int,
    ping_most_s: float,
    providers: tuple[str, ...],
) -> None:
    """Serve in the foreground until Ctrl-C. Needs the extra `serve`, and no GPU.

    All who claim in time are challenged at the same moment, so that one device cannot answer for two. Verdicts go to who answers, and to
    /epochs/NUMBER for everybody. There is no TLS: put it in front where others can listen.
    """
    from harness.market.serve import verifier as serve_here

    serve_here(
        host=host,
        port=port,
        mode=mode,
        n=n,
        steps=steps,
        openings=openings,
        scans=scans,
        slot_s=slot_s,
        closes_s=closes_s,
        valid_for_s=valid_for_s,
        slack=slack,
        pings=pings,
        ping_most_s=ping_most_s,
        providers=providers,
        started=lambda url: click.echo(f"listening at {url}"),
    )


@click.group()
def prover() -> None:
    """Answer the challenges of a verifier that is on a network."""


@prover.command()
@click.argument("url")
@click.option("--device", default="all", show_default=True, help="cpu, cuda:N, or all GPUs, or else the CPU.")
@click.option(
    "--key", envvar="HARNESS_KEY", metavar="FILE", help="Key of `harness keygen`; without one, made for this run."
)
@click.option("--claim", type=float, metavar="OPS", help="Operations/s each device is held to; tried out if not given.")
@json_option
@click.pass_context
def run(ctx: click.Context, *, url: str, device: str, key: str | None, claim: float | None, as_json: bool) -> None:
    """Claim this machine's devices in a verifier's next epoch, answer, and show the verdicts.

    Exits 4 if any device is refused.
    """
    from harness.market.prove import prover as answer

    verdicts = answer(
        url, device=device, key=key, claim=claim, say=lambda line: click.echo(on_one_line(line), err=True)
    )
    if as_json:
        show_json(verdicts)
    else:
        for verdict in verdicts:
            show(text.verdict_card(verdict))
    if not all(v.accepted for v in verdicts):
        ctx.exit(ForgeryError.exit_code)
