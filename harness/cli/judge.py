"""`harness verify` and `harness keygen`: who said what, and was it changed since."""

from __future__ import annotations

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import ForgeryError
from harness.proof import signing
from harness.proof import verify as proof
from harness.render import text

__all__ = ["keygen", "verify"]


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--signer", metavar="HEX", help="Refuse reports that this public key did not sign.")
@json_option
@click.pass_context
def verify(ctx: click.Context, *, files: tuple[str, ...], signer: str | None, as_json: bool) -> None:
    """Check reports: whole, unchanged, in order, and their numbers following from their raw times.

    Several reports of one node are also checked as a chain, in the order given; shell patterns give the right one. Exits 4 if
    any is refused.
    """
    verdicts = proof.verify(*files, signer=signer)
    if as_json:
        show_json(verdicts)
    else:
        for verdict in verdicts:
            show(text.verdict_card(verdict))
    if not all(v.accepted for v in verdicts):
        ctx.exit(ForgeryError.exit_code)


@click.command()
@click.option("--out", required=True, metavar="PATH", help="The file to write the private key to; it must not exist.")
@json_option
def keygen(*, out: str, as_json: bool) -> None:
    """Make a key for this node's reports and print its public half."""
    public = signing.keygen(out)
    if as_json:
        show_json({"path": out, "public_key": public})
        return
    show(f"public key {public}", f"private key in {out}, readable by its owner only: keep it, sign with --key {out}")
