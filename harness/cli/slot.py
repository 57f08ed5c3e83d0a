"""`harness verifier` and `harness prover`: challenges over a network, with the verifier holding the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from harness.cli.output import json_option, on_one_line, show, show_json
from harness.errors import ForgeryError
from harness.render import text

if TYPE_CHECKING:
    from harness.market.verifier.messages import Judged

__all__ = ["prover", "verifier"]


@click.group()
def verifier() -> None:
    """Challenge providers over HTTP, all of them at one moment, by your own clock."""


@verifier.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; nobody else reaches 127.0.0.1."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8440, show_default=True, help="0 takes a free one.")
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
    "--ping-most", "ping_most_s", default=0.5, show_default=True, help="Seconds a ping may take, there and back."
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="HEX",
    help="A public key that may claim; more than once; without, anybody.",
)
@click.option(
    "--key", envvar="HARNESS_KEY", metavar="FILE", help="Sign the verdicts with this key, made by `harness keygen`."
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
    key: str | None,
) -> None:
    """Challenge providers over HTTP, by this machine's clock, until Ctrl-C. Needs the extra `serve`, and no GPU.

    All who claim in time are challenged at the same moment, so that one device cannot answer for two. Verdicts go to who answers, and to
    /epochs/NUMBER for everybody. There is no TLS: put it in front where others can listen.
    """
    from harness.market.verifier.serve import verifier as serve_here

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
        key=key,
        started=lambda url: click.echo(f"listening at {url}"),
    )


@verifier.command()
@click.argument("file", metavar="FILE")
@click.option("--verifier", "signer", metavar="HEX", help="The public key that must have signed them.")
@json_option
def verdicts(*, file: str, signer: str | None, as_json: bool) -> None:
    """Check verdicts that a verifier is said to have given: what `harness prover run --out` kept.

    Exits 4 if one is not whole, as it was signed, and by the key that you name.
    """
    from harness.market.verifier.verdicts import verdicts as read

    judged = read(file, verifier=signer)
    if as_json:
        show_json(judged)
    else:
        _show(judged)


@click.group()
def prover() -> None:
    """Answer the challenges of a verifier that is on a network."""


@prover.command()
@click.argument("url")
@click.option("--device", default="all", show_default=True, help="cpu, cuda:N, or all GPUs, or else the CPU.")
@click.option(
    "--key", envvar="HARNESS_KEY", metavar="FILE", help="Key of `harness keygen`; without one, made for this run."
)
@click.option("--verifier", "signer", metavar="HEX", help="The public key that must have signed the verdicts.")
@click.option("--out", metavar="FILE", help="Keep the verdicts, as the verifier signed them, in this new file.")
@click.option("--claim", type=float, metavar="OPS", help="Operations/s each device is held to; tried out if not given.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    url: str,
    device: str,
    key: str | None,
    signer: str | None,
    out: str | None,
    claim: float | None,
    as_json: bool,
) -> None:
    """Claim this machine's devices in a verifier's next epoch, answer, and show the verdicts.

    Exits 4 if any device is refused.
    """
    from harness.market.verifier.prove import prover as answer

    judged = answer(
        url,
        device=device,
        key=key,
        claim=claim,
        verifier=signer,
        out=out,
        say=lambda line: click.echo(on_one_line(line), err=True),
    )
    if as_json:
        show_json(judged)
    else:
        _show(judged)
    if not all(one.verdict.accepted for one in judged):
        ctx.exit(ForgeryError.exit_code)


def _show(judged: Sequence[Judged]) -> None:
    for one in judged:
        show(text.verdict_card(one.verdict))
        show(
            f"  given at {one.judged_at}, signed by {one.verifier}" if one.verifier else "  nobody signed this verdict"
        )
