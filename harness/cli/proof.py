"""`harness challenge`, `prove`, `check` and `audit`: work that can be checked, by files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import ForgeryError
from harness.proof import by_file
from harness.render import text

if TYPE_CHECKING:
    from harness.model import Verdict

__all__ = ["audit", "challenge", "check", "prove"]


@click.group()
def challenge() -> None:
    """Ask a device for work that nobody could have done before."""


@challenge.command()
@click.option(
    "--device", required=True, metavar="UUID", help="The device that is to answer, as `harness devices` shows it."
)
@click.option("--out", required=True, metavar="FILE", help="The file to write; it must not exist.")
@click.option("--provider", default="anybody", show_default=True, help="The public key that must sign the answer.")
@click.option("--mode", default="int8", show_default=True, help="int8, float16, bfloat16, float32 or float64.")
@click.option("--n", type=int, help="The matrices are n x n, a multiple of 16; 512 for a CPU, 16384 for a GPU.")
@click.option("--steps", default=8, show_default=True, help="Products, each of the state before.")
@click.option("--openings", default=512, show_default=True, help="Rows that are looked at.")
@click.option("--scans", default=0, show_default=True, help="Times that all states are read again.")
@click.option("--beacon", help="A public random value of this moment, such as a drand round's.")
@click.option("--epoch", default=0, show_default=True, help="Number of the period.")
@click.option("--valid", "valid_for_s", default=3600, show_default=True, help="Seconds after which it is stale.")
@json_option
def new(
    *,
    device: str,
    out: str,
    provider: str,
    mode: str,
    n: int | None,
    steps: int,
    openings: int,
    scans: int,
    beacon: str | None,
    epoch: int,
    valid_for_s: int,
    as_json: bool,
) -> None:
    """Issue a challenge for one device, good once and for a while."""
    made = by_file.challenge(
        device=device,
        out=out,
        provider=provider,
        mode=mode,
        n=n,
        steps=steps,
        openings=openings,
        scans=scans,
        beacon=beacon,
        epoch=epoch,
        valid_for_s=valid_for_s,
    )
    if as_json:
        show_json(made)
    else:
        show(f"challenge in {out}, good until {made.expires_at}: answer it with `harness prove {out} --out FILE`")


@click.command()
@click.argument("challenge_file", metavar="CHALLENGE")
@click.option("--out", required=True, metavar="FILE", help="The transcript to write.")
@click.option("--key", metavar="PATH", help="Sign with this key, made by `harness keygen`.")
@click.option("--asked", metavar="HEX", help="The verifier's nonce that chooses the rows to open, if they gave one.")
@json_option
def prove(*, challenge_file: str, out: str, key: str | None, asked: str | None, as_json: bool) -> None:
    """Do a challenge's work on the device it names, and write down what shows that it was done.

    By file nobody but you has a clock on it: for a proof of speed see `harness prover`.
    """
    from harness.cluster import replay

    made = replay.prove(challenge_file, out=out, key=key, asked=asked)
    if as_json:
        show_json(made)
    else:
        show(f"done in {made.elapsed_s:.3g} s; transcript in {out}: anybody can check it with `harness check {out}`")


@click.command()
@click.argument("transcript", metavar="TRANSCRIPT")
@click.option("--challenge", "challenge_file", metavar="FILE", help="Refuse what is not the answer to this challenge.")
@json_option
@click.pass_context
def check(ctx: click.Context, *, transcript: str, challenge_file: str | None, as_json: bool) -> None:
    """Check on a CPU that a challenge's work was done, and say how sure that is. Exits 4 if it is refused."""
    _judged(ctx, by_file.check(transcript, challenge=challenge_file), as_json=as_json)


@click.command()
@click.argument("report", metavar="REPORT")
@click.option("--count", default=3, show_default=True, help="How many of its measurements to draw.")
@click.option("--seed", metavar="HEX", help="What the draw follows from; fresh by default.")
@json_option
@click.pass_context
def audit(ctx: click.Context, *, report: str, count: int, seed: str | None, as_json: bool) -> None:
    """Do a random part of somebody's report again here, and compare the answers, not the times. Exits 4 if it is refused."""
    from harness.cluster import replay

    _judged(ctx, replay.audit(report, count=count, seed=seed), as_json=as_json)


def _judged(ctx: click.Context, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        show_json(verdict)
    else:
        show(text.verdict_card(verdict))
    if not verdict.accepted:
        ctx.exit(ForgeryError.exit_code)
