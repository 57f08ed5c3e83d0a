"""Benchmarks something that answers requests: makes it ready, probes it, puts loads on it, and writes down what was seen.

The record holds every time that was taken. What it sums up is over all repetitions of a load together where it is a percentile (the sample
must be large enough), and the median of the repetitions with an interval across them where it is a rate.

Promised: no result where this client was the bottleneck; different prompts in every request, so that no cache of replies helps.
Not promised: that the server runs the model it names, or that all of it is the server's alone: it is what a client here gets.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from statistics import median
from typing import Literal, Protocol

from harness.errors import FailureError, MisuseError
from harness.inference import audit, loadgen, metrics
from harness.inference.client import Endpoint
from harness.inference.exchange import Exchange, Request, Server
from harness.inference.loadgen import Load, Run
from harness.inference.slo import SLOS, Search, Slo, Try, good_fraction, impatient, is_good, search, try_s

__all__ = ["Level", "Plan", "Progress", "Prompts", "Ready", "ServeReport", "Spread", "bench", "make_ready"]

_DISCARDED_MOST = 2  # repetitions of a load in which this client was the bottleneck, done again
_EACH_LEAST = 3  # requests of a user: the first ones come all at once, the last ones find an idle server
_UNKNOWN_WORD = ("HTTP 400", "HTTP 422")  # how a server refuses `ignore_eos`; any other refusal is about something else
_BUSY, _BUSY_WAITS_S = ("HTTP 408", "HTTP 429"), (1.0, 2.0, 4.0)
_ENERGY_LEAST_S = 20.0  # the driver's counter moves ten times a second
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family", "student",
    "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program", "question", "work", "number",
    "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye",
    "job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line",
    "end", "member", "law", "car",
)  # fmt: skip


# --- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Makes prompts that have nothing in common, from their first characters on, and follow from the seed alone.

    They ask for a story with a beginning of its own: a server that cannot be told to go on is kept going by the task.
    """

    seed: str
    words_count: int
    output_tokens: int

    def ask(self, part: str) -> Callable[[int], Request]:
        """Return what makes the requests of one part of a benchmark."""

        def request(index: int) -> Request:
            nonce = hashlib.sha256(f"{self.seed}/{part}/{index}".encode()).hexdigest()
            rng = random.Random(int(nonce, 16))  # noqa: S311 - variety, not secrets
            words = " ".join(rng.choices(_WORDS, k=self.words_count))
            text = f"{nonce[:12]}: write a very long story that begins with these words: {words}"
            return Request(index=index, prompt=text, output_tokens=self.output_tokens)

        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A server that answered, and what its first answers told."""

    prompts: Prompts
    input_tokens: int | None  # of a prompt, as the server counts them
    e2e_s: float  # of one request alone


async def make_ready(server: Server, *, seed: str, input_tokens: int, output_tokens: int, timeout_s: float) -> Ready:
    """Ask until the server is warm, and find how many words make a prompt of the length wanted, by the server's own count.

    Raises:
        FailureError: it does not answer.
    """
    counts: list[int | None] = []
    lengths = (max(input_tokens // 4, 1), input_tokens)
    for words in lengths:
        found = await _first(server, Prompts(seed=seed, words_count=words, output_tokens=output_tokens), timeout_s)
        counts.append(found.usage.input_tokens if found.usage else None)
    words = _fitting(input_tokens, lengths, counts)
    prompts = Prompts(seed=seed, words_count=words, output_tokens=output_tokens)
    last = await _first(server, prompts, timeout_s)
    return Ready(
        prompts=prompts,
        input_tokens=last.usage.input_tokens if last.usage else None,
        e2e_s=metrics.e2e(last) or 0.0,
    )


async def _first(server: Server, prompts: Prompts, timeout_s: float) -> Exchange:
    request = prompts.ask(f"ready/{prompts.words_count}")(0)
    waits = iter(_BUSY_WAITS_S)
    while True:
        now_s = asyncio.get_running_loop().time()
        found, _ = await loadgen.exchange(server, request, started_s=now_s, intended_s=now_s, timeout_s=timeout_s)
        if found.failure is None:
            return found
        status = found.failure[:8]
        if status in _UNKNOWN_WORD and isinstance(server, Endpoint) and server.ignore_eos:
            server.ignore_eos = False
        elif status in _BUSY and (wait_s := next(waits, None)) is not None:
            await asyncio.sleep(wait_s)
        else:
            msg = f"the server does not answer a first request: {found.failure}"
            raise FailureError(msg)


def _fitting(wanted: int, lengths: Sequence[int], counts: Sequence[int | None]) -> int:
    """Return how many words make `wanted` tokens, by the line through two prompts; that many where the server does not count.

    At most two words a token: what a server claims to count must not make prompts without bound.
    """
    (few, many), (low, high) = lengths, counts
    if low is None or high is None or many <= few or high <= low:
        return wanted
    per_word = (high - low) / (many - few)
    return min(max(round((wanted - (high - many * per_word)) / per_word), 1), 2 * wanted)


# --- the record -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do to a server."""

    seed: str
    users: tuple[int, ...] = ()
    rates_per_s: tuple[float, ...] = ()
    offline: bool = False
    search: bool = False
    requests_count: int = 22  # of each repetition
    repetitions_count: int = 3
    input_tokens: int = 256
    output_tokens: int = 64
    slo: Slo = SLOS["standard"]
    cap_count: int | None = None
    timeout_s: float = 120.0
    usd_per_hour: Decimal | None = None
    audits: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A number per repetition: their median, and an interval of it for three repetitions or more. The name holds the unit."""

    name: str
    value: float | None  # None where it is infinite or unknown
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load, its repetitions, and what they come to."""

    mode: Literal["closed", "poisson", "offline"]
    users_count: int | None
    rate_per_s: float | None
    cap_count: int | None
    runs: tuple[Run, ...]
    discarded_count: int  # repetitions done again, because this client had been the bottleneck
    distributions: tuple[metrics.Distribution, ...]  # over all repetitions together
    good_fraction: float | None
    window: Literal["steady", "whole"]  # what the rates are taken over
    spreads: tuple[Spread, ...]
    usd_per_million_output: Decimal | None  # by good output tokens alone
    usd_per_million_split: tuple[Decimal, Decimal] | None  # prompt and reply, each for the time it takes

    def spread(self, name: str) -> Spread:
        """Return one of the spreads by its name."""
        return next(s for s in self.spreads if s.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeReport:
    """All that was seen of one server. Its canonical bytes are what a signature would cover."""

    schema: Literal["harness.serve/1"]
    created_at: str
    harness_version: str
    python: str
    os: str
    server: str  # an address, or what served in this process
    model: str
    api: str
    ignore_eos: (
        bool | None
    )  # whether it was told to go on to the number of tokens asked for; None: in this process, where it does
    plan: Plan
    prompt_words_count: int
    input_tokens: int | None
    definitions: Mapping[str, str]
    levels: tuple[Level, ...]
    searches: tuple[Search, ...]
    max_rate: Spread | None
    probes: audit.Probes | None
    findings: tuple[audit.Finding, ...]


class Progress(Protocol):
    """Who is told how far it is."""

    def begins(self, what: str, steps: int) -> None:
        """A part of so many steps begins."""

    def step(self) -> None:
        """One of them is done."""


# --- the benchmark ----------------------------------------------------------------------------------------------------


async def bench(  # noqa: PLR0913 - what a record says of a server cannot all be asked of it
    server: Server,
    plan: Plan,
    progress: Progress,
    *,
    name: str,
    model: str = "",
    api: str = "",
    in_process: bool = False,
    joules: Callable[[], float | None] = lambda: None,
) -> ServeReport:
    """Make a server ready, probe it, and put every load of the plan on it.

    Args:
        server: who is asked; open.
        plan: with what.
        progress: who is told.
        name: of the server, for the record.
        model: what it says it serves.
        api: which of its interfaces is used.
        in_process: the server computes in this process, and stamps what it makes there: then how busy this process is says nothing.
        joules: reads a counter of the energy that the server's device has spent.

    Raises:
        MisuseError: the plan holds no load, or one of more requests or tokens of reply than a record can hold.
        FailureError: the server does not answer, or this client was the bottleneck.
    """
    loads = _loads(plan)
    if not 0 < plan.output_tokens <= loadgen.CHUNKS_MOST:
        msg = f"output_tokens is {plan.output_tokens}; a reply of 1 to {loadgen.CHUNKS_MOST} tokens can be recorded"
        raise MisuseError(msg)
    if not (loads or plan.search):
        msg = "the plan puts no load on the server: name users, rates, offline, or search"
        raise MisuseError(msg)
    progress.begins("making ready", 1)
    ready = await make_ready(
        server,
        seed=plan.seed,
        input_tokens=plan.input_tokens,
        output_tokens=plan.output_tokens,
        timeout_s=plan.timeout_s,
    )
    parts = _Bench(server, plan, ready, progress, joules, judged=not in_process)
    probes = await parts.probe() if plan.audits else None
    levels = [await parts.level(load) for load in loads]
    searches = [await parts.search(i) for i in range(plan.repetitions_count if plan.search else 0)]
    seen = [x for level in levels for run in level.runs for x in run.exchanges]
    return ServeReport(
        schema="harness.serve/1",
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        harness_version=version("gpu-assay"),
        python=platform.python_version(),
        os=platform.platform(),
        server=name,
        model=model,
        api=api,
        ignore_eos=server.ignore_eos if isinstance(server, Endpoint) else None,
        plan=plan,
        prompt_words_count=ready.prompts.words_count,
        input_tokens=ready.input_tokens,
        definitions=dict(metrics.DEFINITIONS),
        levels=tuple(levels),
        searches=tuple(searches),
        max_rate=_spread("max_rate_per_s", [s.passed_rate_per_s for s in searches]) if searches else None,
        probes=probes,
        findings=audit.judge(probes, seen) if probes else (),
    )


def _loads(plan: Plan) -> list[Load]:
    count, timeout_s = plan.requests_count, plan.timeout_s
    return [
        *(loadgen.closed(users, max(count, _EACH_LEAST * users), timeout_s=timeout_s) for users in plan.users),
        *(loadgen.poisson(r, count, 0, cap=plan.cap_count, timeout_s=timeout_s) for r in plan.rates_per_s),
        *([loadgen.offline(count, cap=plan.cap_count, timeout_s=timeout_s)] if plan.offline else []),
    ]


def _named(load: Load) -> str:
    if load.mode == "closed":
        return f"{load.users_count} user{'' if load.users_count == 1 else 's'}"
    return f"{load.rate_per_s:.4g} requests/s" if load.rate_per_s else "all at once"


class _Bench:
    """The parts of one benchmark."""

    def __init__(  # noqa: PLR0913 - what `bench` was given
        self,
        server: Server,
        plan: Plan,
        ready: Ready,
        progress: Progress,
        joules: Callable[[], float | None],
        *,
        judged: bool,
    ) -> None:
        self._server, self._plan, self._ready, self._progress, self._joules = server, plan, ready, progress, joules
        self._prompts, self._judged = ready.prompts, judged

    async def probe(self) -> audit.Probes:
        self._progress.begins("probing", audit.ROUNDS)
        return await audit.probe(
            self._server, self._prompts.ask("probe"), timeout_s=self._plan.timeout_s, told=self._progress.step
        )

    async def level(self, load: Load) -> Level:
        runs: list[Run] = []
        discarded = 0
        while len(runs) < self._plan.repetitions_count:
            part = f"{_named(load)}, repetition {len(runs) + 1}"
            tried = f", try {discarded + 1}" if discarded else ""
            self._progress.begins(part + tried, load.requests_count)
            seed = _number(self._plan.seed, part)  # the same arrivals again, but never the same prompts
            try:
                runs.append(await self._drive(replace(load, seed=seed), part + tried, lambda _: False))
            except loadgen.BusyClientError:
                discarded += 1
                if discarded > _DISCARDED_MOST:
                    raise
        return _summary(load, runs, discarded, self._plan)

    async def search(self, repetition: int) -> Search:
        plan = self._plan
        slo = impatient(plan.slo, alone_s=self._ready.e2e_s)
        least = plan.requests_count * plan.repetitions_count
        seed = _number(plan.seed, f"search/{repetition}")

        async def attempt(rate_per_s: float) -> Try:
            part = f"search {repetition + 1}: {rate_per_s:.4g} requests/s"
            count = max(least, math.ceil(rate_per_s * try_s(slo, alone_s=self._ready.e2e_s)))
            if count > loadgen.REQUESTS_MOST:
                msg = f"{rate_per_s:.4g} requests/s were not tried: long enough to tell would be {count} requests"
                raise loadgen.BusyClientError(msg)
            bad_most = math.floor((1 - slo.least_fraction) * count + 1e-9)
            self._progress.begins(part, count)
            bad = 0

            def hopeless(x: Exchange) -> bool:
                nonlocal bad
                bad += not is_good(x, slo)
                return bad > bad_most

            load = loadgen.poisson(rate_per_s, count, seed, cap=plan.cap_count, timeout_s=plan.timeout_s)
            run = await self._drive(load, part, hopeless)
            good = sum(is_good(x, slo) for x in run.exchanges)
            return Try(rate_per_s=rate_per_s, requests_count=count, good_count=good, passed=bad <= bad_most)

        return await search(attempt, slo, start_per_s=1 / self._ready.e2e_s)

    async def _drive(self, load: Load, part: str, stop: Callable[[Exchange], bool]) -> Run:
        def watch(x: Exchange) -> bool:
            self._progress.step()
            return stop(x)

        run = await loadgen.drive(self._server, load, self._prompts.ask(part), watch=watch, joules=self._joules)
        why = loadgen.objection(run.client) if self._judged else None
        if why:
            msg = f"no result for {part}: {why}"
            raise loadgen.BusyClientError(msg)
        return run


def _number(seed: str, part: str) -> int:
    return int(hashlib.sha256(f"{seed}/arrivals/{part}".encode()).hexdigest()[:12], 16)


# --- what it comes to -------------------------------------------------------------------------------------------------


def _summary(load: Load, runs: Sequence[Run], discarded: int, plan: Plan) -> Level:
    everything = [x for run in runs for x in run.exchanges]
    windows = [metrics.steady_window(run.exchanges) for run in runs]
    steady = all(windows)
    if not steady:
        windows = [metrics.whole_window(run.exchanges) for run in runs]
    seen = [
        metrics.rates(run.exchanges, window, lambda x: is_good(x, plan.slo))
        for run, window in zip(runs, windows, strict=True)
    ]
    spreads = _spreads(runs, seen)
    good = next(s.value for s in spreads if s.name == "good_output_tokens_per_s")
    price = plan.usd_per_hour
    return Level(
        mode=load.mode,
        users_count=load.users_count,
        rate_per_s=load.rate_per_s,
        cap_count=load.cap_count,
        runs=tuple(runs),
        discarded_count=discarded,
        distributions=tuple(metrics.distribution(everything, metric) for metric in metrics.DEFINITIONS),
        good_fraction=good_fraction(everything, plan.slo),
        window="steady" if steady else "whole",
        spreads=spreads,
        usd_per_million_output=None if price is None else metrics.usd_per_million(price, good),
        usd_per_million_split=None if price is None else _split(price, everything, seen[-1]),
    )


def _split(price: Decimal, exchanges: Sequence[Exchange], seen: metrics.Rates | None) -> tuple[Decimal, Decimal] | None:
    per_input = [
        (metrics.ttft_from_send(x) or 0.0) / x.usage.input_tokens
        for x in exchanges
        if x.failure is None and x.usage and x.usage.input_tokens
    ]
    per_output = [v for v in metrics.values(exchanges, "tpot/1") if math.isfinite(v)]
    if seen is None or not per_input or not per_output:
        return None
    return metrics.usd_per_million_split(
        price, seen, input_s_per_token=median(per_input), output_s_per_token=median(per_output)
    )


def _spreads(runs: Sequence[Run], seen: Sequence[metrics.Rates | None]) -> tuple[Spread, ...]:
    rates = (
        "requests_per_s",
        "good_requests_per_s",
        "output_tokens_per_s",
        "good_output_tokens_per_s",
        "input_tokens_per_s",
    )
    medians = {"ttft": "ttft/1", "itl": "itl/1", "tpot": "tpot/1", "e2e": "e2e/1"}
    return (
        *(_spread(name, [None if r is None else getattr(r, name) for r in seen]) for name in rates),
        *(_spread(f"{short}_p50_s", [_median(run, metric) for run in runs]) for short, metric in medians.items()),
        _spread("tokens_per_joule", [_efficiency(run) for run in runs]),
    )


def _median(run: Run, metric: str) -> float | None:
    sample = metrics.values(run.exchanges, metric)
    return metrics.nearest_rank(sample, 50) if sample else None


def _efficiency(run: Run) -> float | None:
    return metrics.tokens_per_joule(run.exchanges, run.joules) if run.elapsed_s >= _ENERGY_LEAST_S else None


def _spread(name: str, found: Sequence[float | None]) -> Spread:
    known = [v for v in found if v is not None]
    if len(known) < len(found) or not known:
        return Spread(name=name, value=None, low=None, high=None)
    low, high = metrics.bootstrap(known, seed=0) or (None, None)
    return Spread(name=name, value=_finite(median(known)), low=_finite(low), high=_finite(high))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
