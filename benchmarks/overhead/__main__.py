"""Measure what the harness itself costs: processes, records, the journal, the sampler, and all that in a run.

    uv run python benchmarks/overhead [--standard] [--json | --markdown]

Nothing here is compared with anything; each line says how it was taken. Times are medians with the middle half beside them. By default
one quick run is taken apart, in about a minute; `--standard` takes a standard run apart, in about ten, and nothing else. Exit status 1
if a limit is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import runs
import sampling
from records import processes, records

from harness.device.cpu import cpu_device

if TYPE_CHECKING:
    from cost import Line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the harness itself costs.")
    parser.add_argument("--standard", action="store_true", help="only take a standard run apart: about ten minutes")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    lines = []
    for line in _lines(standard=args.standard):
        print(f"{line.what} ...", file=sys.stderr)
        lines.append(line)
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        print((_markdown if args.markdown else _aligned)(lines))
    return int(not all(line.kept for line in lines))


def _lines(*, standard: bool) -> Iterator[Line]:
    if standard:
        yield from runs.lines("standard")
        return
    device = cpu_device()
    yield from processes(device)
    yield from records(device)
    yield from sampling.lines()
    yield from runs.lines("quick")


_TITLES = ("cost of", "median", "middle half", "unit", "times", "limit", "how measured")
_NUMERIC = {1, 2, 4}


def _cells(line: Line) -> list[str]:
    span = f"{_digits(line.low)} to {_digits(line.high)}" if line.count > 1 else "-"
    limit = "-" if line.limit is None else f"{line.limit:g}: {'kept' if line.kept else 'broken'}"
    return [line.what, _digits(line.value), span, line.unit, str(line.count), limit, line.how]


def _digits(value: float) -> str:
    """Write three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _aligned(lines: Sequence[Line]) -> str:
    table = [list(_TITLES), *map(_cells, lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_TITLES))]
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in _NUMERIC else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def _markdown(lines: Sequence[Line]) -> str:
    rule = ["---:" if i in _NUMERIC else "---" for i in range(len(_TITLES))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(_TITLES), rule, *map(_cells, lines)])


if __name__ == "__main__":
    sys.exit(main())
