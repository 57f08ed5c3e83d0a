"""Compare inference on a CPU with llama.cpp and PyTorch: the same weights, float32, one thread, side by side in one run.

    python -m venv peers && peers/bin/pip install llama-cpp-python             # builds llama.cpp; minutes
    python -m venv eager && eager/bin/pip install torch transformers
    uv run python benchmarks/inference --llama peers/bin/python [--torch eager/bin/python] [--rounds N] [--json | --markdown]

Each engine is a process of its own, pinned to the same CPU and on one thread; while one works, the others wait for their input. Weights
are synthetic, of SmolLM2-135M's shape unless --model says otherwise, and the same for all; so are the tokens. Every engine's last logits are held to
ours, so that all have done the same work: llama.cpp keeps keys and values in float16 by default, hence the bound.

Samples alternate (ours, peers, peers backwards, ours, ...). A round gives one ratio of medians, the peer's time to ours, so above 1 ours is
faster; the interval is Student's t over the rounds' ratios. Times are those during which the process had its CPU: on one thread that is the time
on the clock less the wait for other processes, which the column "waited" tells as a share of it. What those do to caches and to the
memory's bandwidth meets all sides alike; it is left in, and widens the interval. Exit status 1 if prefill is slower than 0.95 of llama.cpp's,
or decoding one row than 0.9, as far as the whole interval says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import files
import numpy as np
from serving import CAPACITY

from harness import stats
from harness.device.cpu import CpuDevice, cpu_device
from harness.inference import synth
from harness.inference.specs import find

__all__ = ["main"]

_SEED = 20261125
_SAMPLES = 4  # of each engine in a round; even, so that each goes first equally often
_AGREEMENT = 1e-2  # of the logits' standard deviation
_LEAST = {"prefill": 0.95, "decode": 0.9}  # of llama.cpp's rate, by the first word of a task's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is timed: so many passes of so many tokens, in each of some rows that hold some already."""

    name: str
    rows: int
    depth: int
    tokens: int
    steps: int

    def request(self) -> str:
        """Return it as a line for an engine."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "name"}) + "\n"


TASKS = (
    Task(name="prefill 128", rows=1, depth=0, tokens=128, steps=1),
    Task(name="prefill 512", rows=1, depth=0, tokens=512, steps=1),
    Task(name="decode, depth 0", rows=1, depth=0, tokens=1, steps=24),
    Task(name="decode, depth 512", rows=1, depth=512, tokens=1, steps=24),
    *(Task(name=f"batch of {b}, depth 0", rows=b, depth=0, tokens=1, steps=12) for b in (2, 4, 8, 16)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task beside one peer; rates are tokens a second of all rows together."""

    task: str
    peer: str
    ours: float
    peers: float
    ratio: float
    ratio_low: float
    ratio_high: float
    logits_off: float  # in standard deviations
    rounds: int
    waited: float  # for a CPU, as a share of the time that ours and the peer had one


class Side:
    """An engine in a process of its own."""

    def __init__(self, name: str, command: Sequence[str | Path], cpu: int) -> None:
        alone = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL", "NUMBA")}
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self.name = name
        process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **alone, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self.version = str(self._answer()["version"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self._from.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, task: Task) -> dict[str, Any]:
        """Have a task done, and return the engine's answer."""
        self._to.write(task.request())
        self._to.flush()
        return self._answer()


def compare(task: Task, ours: Side, peers: Sequence[Side], rounds: int) -> Iterator[Row]:
    """Time a task on all sides in turn."""
    sides = [ours, *peers]
    logits = {side.name: np.array([side.ask(task) for _ in range(2)][-1]["logits"]) for side in sides}
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    waited_s = dict.fromkeys(times, 0.0)
    ratios: dict[str, list[float]] = {side.name: [] for side in peers}
    for _ in range(rounds):
        found: dict[str, list[float]] = {side.name: [] for side in sides}
        for i in range(_SAMPLES):
            for side in sides if i % 2 == 0 else reversed(sides):
                answer = side.ask(task)
                found[side.name].append(answer["time_s"])
                waited_s[side.name] += answer["waited_s"]
        for side in sides:
            times[side.name] += found[side.name]
        for side in peers:
            ratios[side.name].append(median(found[side.name]) / median(found[ours.name]))
    count = task.rows * task.tokens * task.steps
    for side in peers:
        ratio, low, high = stats.interval(ratios[side.name])
        off = np.abs(logits[side.name] - logits[ours.name]).max() / logits[ours.name].std()
        if not off <= _AGREEMENT:
            sys.exit(f"{side.name} answers {task.name} otherwise than ours: off by {off:.2g} standard deviations")
        yield Row(
            task=task.name,
            peer=side.name,
            ours=count / median(times[ours.name]),
            peers=count / median(times[side.name]),
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            logits_off=float(off),
            rounds=rounds,
            waited=sum(waited_s[s.name] for s in (ours, side)) / sum(sum(times[s.name]) for s in (ours, side)),
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare inference on a CPU with llama.cpp and PyTorch.")
    parser.add_argument("--llama", help="a Python that has llama-cpp-python")
    parser.add_argument("--torch", help="a Python that has torch and transformers")
    parser.add_argument("--array", action="store_true", help="compare with our own array path too")
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help="a dense model of Llama's architecture, without scaled rotary embeddings",
    )
    parser.add_argument("--only", default="", help="time only tasks whose name contains this")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each task; more make a narrower interval")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: one round has no spread")
    spec, backend = find(args.model), CpuDevice(cpu_device())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        files.write(folder, spec, synth.synthetic(spec, _SEED, backend).whole(), CAPACITY)
        sides = [stack.enter_context(side) for side in _sides(args, folder)]
        if len(sides) < 2:
            parser.error("there is nobody to compare with: name --llama or --torch")
        tasks = [task for task in TASKS if args.only in task.name]
        rows = []
        for task in tasks:
            for row in compare(task, sides[0], sides[1:], args.rounds):
                print(f"{row.task}: {row.ratio:.3f} of {row.peer}", file=sys.stderr)
                rows.append(row)
        header = {
            "CPU": f"{backend.device.name}, one thread, load {os.getloadavg()[0]:.2f} at the end",
            "model": f"{spec.name}, float32, {synth.SCHEME} weights of seed {_SEED}",
            **{side.name: side.version for side in sides},
        }
    if args.json:
        print(json.dumps({"header": header, "rows": [asdict(r) for r in rows]}, indent=1))
    else:
        print("\n".join(f"{k}: {v}" for k, v in header.items()), end="\n\n")
        print(_table(rows, markdown=args.markdown))
    return int(any(_too_slow(row) for row in rows))


def _sides(args: argparse.Namespace, folder: Path) -> Iterator[Side]:
    here, cpu = Path(__file__).parent, max(os.sched_getaffinity(0))
    yield Side("ours", [sys.executable, here / "engine_harness.py", folder, "fast"], cpu)
    if args.llama:
        yield Side("llama.cpp", [args.llama, here / "engine_llama.py", folder], cpu)
    if args.torch:
        yield Side("transformers", [args.torch, here / "engine_torch.py", folder], cpu)
    if args.array:
        yield Side("array path", [sys.executable, here / "engine_harness.py", folder, "array"], cpu)


def _too_slow(row: Row) -> bool:
    least = _LEAST.get(row.task.split(maxsplit=1)[0].rstrip(","))
    return row.peer == "llama.cpp" and least is not None and row.ratio_high < least


_TITLES = (
    "task",
    "against",
    "ours tok/s",
    "peer tok/s",
    "ratio",
    "95 % interval",
    "logits off",
    "rounds",
    "waited",
)
_TEXT = {0, 1}


def _table(rows: Sequence[Row], *, markdown: bool) -> str:
    lines = [list(_TITLES)] + [
        [
            r.task, r.peer, f"{r.ours:.1f}", f"{r.peers:.1f}", f"{r.ratio:.3f}", f"{r.ratio_low:.3f} to {r.ratio_high:.3f}",
            f"{r.logits_off:.1e}", str(r.rounds), f"{r.waited:.0%}",
        ]
        for r in rows
    ]  # fmt: skip
    if markdown:
        lines.insert(1, ["---" if i in _TEXT else "---:" for i in range(len(_TITLES))])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[i]) for line in lines) for i in range(len(_TITLES))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in _TEXT else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
