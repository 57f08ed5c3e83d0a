"""`harness offer call`: what a wallet is to send to the escrow that an offer names."""

from __future__ import annotations

from typing import Literal

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import MisuseError

__all__ = ["call"]

Step = Literal["approve", "authorize", "capture", "refund", "release", "reclaim"]
_STEPS: dict[Step, tuple[str, ...]] = {  # with the options that each takes
    "approve": ("units",),
    "authorize": ("units", "capture_by"),
    "capture": ("units",),
    "refund": ("amount", "reason"),
    "release": (),
    "reclaim": (),
}


@click.command()
@click.argument("file", metavar="OFFER")
@click.option("--do", "step", required=True, type=click.Choice(list(_STEPS)), help="The buyer approves and authorizes, and may reclaim; the provider captures; the evaluator refunds; anybody releases.")  # fmt: skip
@click.option("--units", type=click.IntRange(min=0), metavar="N", help="How many, for approve, authorize and capture.")
@click.option("--capture-by", type=click.IntRange(min=0), metavar="SECONDS", help="For authorize: since 1970, when the buyer may take back what was not captured.")  # fmt: skip
@click.option("--amount", type=click.IntRange(min=0), metavar="ATOMS", help="For refund: how much goes back.")
@click.option("--reason", metavar="HEX", help="For refund: digest of the evidence, 0x and 64 hex digits.")
@json_option
def call(
    *,
    file: str,
    step: Step,
    units: int | None,
    capture_by: int | None,
    amount: int | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Write one call of the escrow that an offer names, for a wallet to sign and send. No chain is contacted.

    Before you pay: look at the escrow's code, and at the token's decimals, on the chain.
    """
    from harness.market.dialects import calldata
    from harness.market.offers import envelope

    found = envelope.read(file)
    given = {"units": units, "capture_by": capture_by, "amount": amount, "reason": reason}
    told = {name: value for name, value in given.items() if value is not None}
    wanted = _STEPS[step]
    if set(told) != set(wanted):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in wanted) or "none of the four"
        message = f"--do {step} takes {options}"
        raise MisuseError(message)
    subject = found if step == "authorize" else found.offer
    made: calldata.Call = getattr(calldata, step)(subject, **told)
    if as_json:
        show_json(made)
        return
    show(f"{made.does}", f"chain {made.chain_id}", f"to    {made.to}", f"data  {made.data}")
