"""How `harness serve` bears load: signed quotes at 2,000 a minute, and a flood beyond its limit: `python benchmarks/serving_quotes.py`.

All on this machine, over the loopback, with the server in a process of its own and the CPU's report of `results/`. Load is open: requests are
due at Poisson times whether or not earlier ones were answered, and a latency runs from when its request was due. The flood comes from one
address as fast as it is answered; meanwhile another address asks politely. Said of the server: CPU seconds, resident memory and the size of its
journal before and after. Bounded: at most `--minutes` of load, and `--flood` requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.market.offers.secp256k1 import keygen

ROOT = Path(__file__).parents[1]
BODY = json.dumps({"seconds": 60}).encode()
CONNECTIONS = 16
POLITE = "127.0.0.2"  # another address of this machine: another bucket
GAP_S = 0.25  # between two polite requests


class Line:
    """One kept connection."""

    def __init__(self, port: int, source: str) -> None:
        self._port, self._source = port, source
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def quote(self) -> tuple[int, dict[bytes, bytes]]:
        """Ask for a quote; return the status and the headers."""
        if self._pair is None:
            self._pair = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._source, 0))
        reader, writer = self._pair
        head = f"POST /v1/quotes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        writer.write(head.encode() + BODY)
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in rest if line)
        await reader.readexactly(int(headers[b"content-length"]))
        return int(first.split()[1]), headers

    async def close(self) -> None:
        """Hang up."""
        if self._pair:
            self._pair[1].close()
            await self._pair[1].wait_closed()


@contextmanager
def selling(folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Serve, and yield port and process id."""
    if not (folder / "key").exists():
        keygen(folder / "key")
    command = [sys.executable, "-m", "harness", "serve", str(ROOT / "results"), "--key", str(folder / "key"), "--cpus"]
    more = [
        "--facilitator",
        "trial",
        "--evidence-hours",
        "87600",
        "--port",
        "0",
        "--journal",
        str(folder / "quotes.db"),
    ]
    with subprocess.Popen([*command, *more, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline() if process.stdout else ""
            yield int(first.rsplit(":", 1)[1]), process.pid
        finally:
            process.terminate()


def cpu_s(pid: int) -> float:
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("quotes.db*"))


def told(latencies_s: list[float]) -> str:
    ordered = sorted(latencies_s)
    at = {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] * 1e3 for p in (50, 90, 99)}
    return ", ".join(f"{name} {ms:.1f} ms" for name, ms in at.items()) + f", most {ordered[-1] * 1e3:.1f} ms"


async def load(port: int, per_minute: int, count: int) -> tuple[list[float], Counter[int], float]:
    """Ask at Poisson times; return each latency from when it was due, the statuses, and the seconds in which all were due."""
    rng = random.Random(1)  # noqa: S311 - a load, no secret
    due, at = [], 0.0
    for _ in range(count):
        at += rng.expovariate(per_minute / 60)
        due.append(at)
    free: asyncio.Queue[Line] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Line(port, "127.0.0.1"))
    for _ in range(4):
        line = await free.get()
        await line.quote()
        free.put_nowait(line)
    begun, latencies, statuses = time.perf_counter(), [], Counter[int]()

    async def one(due_s: float) -> None:
        await asyncio.sleep(max(begun + due_s - time.perf_counter(), 0))
        line = await free.get()
        status, _ = await line.quote()
        free.put_nowait(line)
        latencies.append(time.perf_counter() - begun - due_s)
        statuses[status] += 1

    await asyncio.gather(*(one(due_s) for due_s in due))
    while not free.empty():
        await free.get_nowait().close()
    return latencies, statuses, due[-1]


async def flood(port: int, count: int) -> tuple[Counter[int], int, list[float], float]:
    """Ask as fast as it is answered; return statuses, refusals with Retry-After, a polite asker's latencies, and seconds."""
    left, statuses, waits, polite = [count], Counter[int](), [0], []

    async def pressing() -> None:
        line = Line(port, "127.0.0.1")
        while left[0] > 0:
            left[0] -= 1
            status, headers = await line.quote()
            statuses[status] += 1
            waits[0] += b"retry-after" in headers
        await line.close()

    async def politely() -> None:
        line = Line(port, POLITE)
        while left[0] > 0:
            begun = time.perf_counter()
            status, _ = await line.quote()
            if status != 201:
                message = f"the polite asker got {status}"
                raise SystemExit(message)
            polite.append(time.perf_counter() - begun)
            await asyncio.sleep(GAP_S)
        await line.close()

    begun = time.perf_counter()
    await asyncio.gather(politely(), *(pressing() for _ in range(CONNECTIONS)))
    return statuses, waits[0], polite, time.perf_counter() - begun


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--per-minute", type=int, default=2000)
    asked.add_argument("--minutes", type=float, default=1.0)
    asked.add_argument("--flood", type=int, default=20_000)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with selling(folder, "--rate", "100000", "--rate-all", "100000") as (port, pid):
            before_s = cpu_s(pid)
            count = int(given.per_minute * given.minutes)
            latencies, statuses, due_s = asyncio.run(load(port, given.per_minute, count))
            used_s = cpu_s(pid) - before_s
            print(f"load: {count} quotes due in {due_s:.1f} s ({count / due_s * 60:.0f} a minute), {dict(statuses)}")
            print(f"  {told(latencies)}")
            print(f"  server: {used_s / len(latencies) * 1e3:.2f} ms of CPU a quote, {memory_mib(pid):.0f} MiB")
        with selling(folder) as (port, pid):
            asyncio.run(load(port, 600, 20))
            was_mib, was_bytes = memory_mib(pid), size(folder)
            found, waits, polite, passed_s = asyncio.run(flood(port, given.flood))
            print(f"flood: {sum(found.values())} requests in {passed_s:.1f} s, {dict(found)}; {waits} with Retry-After")
            print(f"  the polite asker meanwhile: {len(polite)} quotes, {told(polite)}")
            grown = f"{memory_mib(pid) - was_mib:+.1f} MiB of memory, {size(folder) - was_bytes:+d} bytes of journal"
            print(f"  server: {grown}")


if __name__ == "__main__":
    main()
