"""`harness akash-price`: the program that an Akash provider runs for each order.

It stands apart from the other commands, whose libraries take longer to load than the answer may: the door hands over to it before it loads them.

    #!/bin/sh
    exec harness akash-price --quotes /var/lib/harness/quotes --usd-per-akt 0.52
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.errors import HarnessError, MisuseError

__all__ = ["akash_price", "main"]

_F = TypeVar("_F", bound=Callable[..., Any])

_ORDER_BYTES_MOST = 1 << 20


class _Amount(click.ParamType[Decimal]):
    """A decimal, 0 or more, exactly as it was typed."""

    name = "number"

    def convert(self, value: str | Decimal, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not found.is_finite() or found < 0:
            self.fail(f"{value!r} is not a number of 0 or more", param, ctx)
        return found


def _usd(name: str, what: str) -> Callable[[_F], _F]:
    return click.option(name, type=_Amount(), default="0", show_default=True, metavar="USD", help=what)


@click.command("akash-price")
@click.option("--quotes", required=True, metavar="FOLDER", help="Quotes of this provider's GPUs, as `harness quote --out` writes them.")  # fmt: skip
@click.option("--usd-per-akt", type=_Amount(), metavar="USD", help="What an AKT is worth; without it there is no bid in uakt.")  # fmt: skip
@click.option("--block-s", type=_Amount(), default="6.117", show_default=True, metavar="S", help="Mean seconds between blocks.")  # fmt: skip
@click.option("--max-age-s", type=click.IntRange(min=1), default=86_400, show_default=True, help="Bid by no benchmark older than this.")  # fmt: skip
@_usd("--cpu-usd", "A thread, by the month, where the GPU's price does not cover its host.")
@_usd("--memory-usd", "A GiB of memory, by the month.")
@_usd("--storage-usd", "A GiB of storage, by the month.")
@_usd("--endpoint-usd", "An open port, by the month.")
@_usd("--ip-usd", "A leased address, by the month.")
@click.option("--at", "now_s", type=click.IntRange(min=0), metavar="SECONDS", help="The time, in seconds since 1970; else now.")  # fmt: skip
def akash_price(  # noqa: PLR0913 - one parameter an option
    *,
    quotes: str,
    usd_per_akt: Decimal | None,
    block_s: Decimal,
    max_age_s: int,
    cpu_usd: Decimal,
    memory_usd: Decimal,
    storage_usd: Decimal,
    endpoint_usd: Decimal,
    ip_usd: Decimal,
    now_s: int | None,
) -> None:
    """Price an Akash order: its JSON on stdin, the price of a block on stdout. Any other exit code than 0 means no bid."""
    from harness import codec
    from harness.market.dialects import akash
    from harness.model import Quote

    order = sys.stdin.buffer.read(_ORDER_BYTES_MOST + 1)
    if len(order) > _ORDER_BYTES_MOST:
        message = f"the order has more than {_ORDER_BYTES_MOST} bytes"
        raise MisuseError(message)
    files = sorted(Path(quotes).glob("quote-*.json"))
    if not files:
        message = f"no quote in {quotes!r}: `harness quote REPORT --out {quotes}` writes them"
        raise MisuseError(message)
    rates = akash.Rates(
        usd_per_akt=usd_per_akt,
        block_s=block_s,
        cpu_usd=cpu_usd,
        memory_usd=memory_usd,
        storage_usd=storage_usd,
        endpoint_usd=endpoint_usd,
        ip_usd=ip_usd,
    )
    price = akash.bid(
        order.decode("utf-8", "replace"),
        [codec.read(file, Quote) for file in files],
        rates,
        now_s=int(time.time()) if now_s is None else now_s,
        max_age_s=max_age_s,
    )
    click.echo(price)


def main(arguments: list[str]) -> int:
    """Run the script; return its exit code, with one line on stderr where it does not bid."""
    try:
        code = akash_price.main(arguments, prog_name="harness akash-price", standalone_mode=False)
    except HarnessError as err:
        click.echo(f"harness: {err}", err=True)
        return err.exit_code
    except click.ClickException as err:
        click.echo(f"harness: {err.format_message()} See `harness akash-price --help`.", err=True)
        return err.exit_code
    return code if isinstance(code, int) else 0
