"""Delivery by a program of the seller's: told on standard input what was sold, it hands the device out, and says on standard output how to reach it.

    in   {"quote_id","device","until_s","payer","transaction","amount_atomic","asset","network"}
    out  one JSON object, which goes to the buyer and into the journal

Promised: one run a sale, whatever comes of it; no shell; what it leaves running is not waited for; a run that is too long is ended, and it, an exit
code other than 0 or other output is an undelivered sale, with the reason in the journal.
Not promised: that what it does is undone then. It must leave nothing half done behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from harness.errors import FailureError, MisuseError
from harness.market.sales.till import Sale, Sold
from harness.strangers import loads

if TYPE_CHECKING:
    from harness.market.sales.counter import Fulfil

__all__ = ["program"]

_OUTPUT_MOST_BYTES = 64 << 10


def program(command: Sequence[str], *, timeout_s: float = 60.0) -> Fulfil:
    """Return a delivery that runs a program.

    Args:
        command: the program and its arguments.
        timeout_s: after which it is killed.

    Raises:
        MisuseError: the command is empty.
    """
    if not command:
        message = "the program to run for a sale is empty; it should be a path, with its arguments"
        raise MisuseError(message)

    async def deliver(sale: Sale, sold: Sold) -> Mapping[str, Any]:
        return _read(await _run(command, json.dumps(_told(sale, sold)).encode(), timeout_s), command[0])

    return deliver


def _told(sale: Sale, sold: Sold) -> dict[str, Any]:
    return {
        "quote_id": sale.id,
        "device": sale.device,
        "until_s": sale.until_s,
        "payer": sold.payer,
        "transaction": sold.transaction,
        "amount_atomic": str(sold.amount_atomic),
        "asset": sold.asset,
        "network": sold.network,
    }


async def _run(command: Sequence[str], told: bytes, timeout_s: float) -> bytes:
    # Files, not pipes: a pipe ends when the last process that has it does, and the program may have started some that stay.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(told)
        given.seek(0)
        await _wait(command, given, printed, timeout_s)
        return os.pread(printed.fileno(), _OUTPUT_MOST_BYTES + 1, 0)


async def _wait(command: Sequence[str], given: IO[bytes], printed: IO[bytes], timeout_s: float) -> None:
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=given, stdout=printed)
    except OSError as err:
        message = f"cannot run {command[0]!r}: {err.strerror}"
        raise FailureError(message) from err
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError as err:
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            process.kill()
        await process.wait()
        message = f"{command[0]!r} took more than {timeout_s:.0f} s"
        raise FailureError(message) from err
    if process.returncode:
        message = f"{command[0]!r} ended with exit code {process.returncode}"
        raise FailureError(message)


def _read(output: bytes, name: str) -> Mapping[str, Any]:
    try:
        found = loads(output) if len(output) <= _OUTPUT_MOST_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        message = f"{name!r} should print one JSON object of at most {_OUTPUT_MOST_BYTES} bytes"
        raise FailureError(message)
    return found
