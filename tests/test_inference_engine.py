"""Our own engine behind the load generator: its tokens are those of the model alone, whatever the company and the chunks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from harness import codec
from harness.errors import MisuseError
from harness.inference import metrics
from harness.inference.adapters import ADAPTERS, missing, open_adapter
from harness.inference.engine import Engine, OneByOne, hashed_words
from harness.inference.exchange import Request
from harness.inference.loadgen import Run, closed, drive, exchange, offline, poisson
from harness.inference.model import Model, generate
from harness.inference.serving import Plan, ServeReport, bench
from harness.inference.specs import SPECS
from harness.inference.synth import synthetic
from harness.registry import Skip


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-qwen3.5"])
def model(request: pytest.FixtureRequest, cpu: Any) -> Model:
    spec = SPECS[request.param]
    return Model(spec, synthetic(spec, 7, cpu))


def prompts(vocab: int, longest: int = 20, tokens: int = 6) -> Callable[[int], Request]:
    def ask(index: int) -> Request:
        rng = random.Random(index)  # noqa: S311
        length = rng.randrange(1, longest)
        return Request(index=index, prompt=tuple(rng.choices(range(vocab), k=length)), output_tokens=tokens)

    return ask


def replies(model: Model, asks: list[Request], **options: Any) -> list[str]:
    async def main() -> list[str]:
        async with Engine(model, **options) as engine:
            now_s = asyncio.get_running_loop().time()
            found = await asyncio.gather(
                *(exchange(engine, r, started_s=now_s, intended_s=now_s, timeout_s=60) for r in asks)
            )
        assert [x.failure for x, _ in found] == [None] * len(asks)
        return [text for _, text in found]

    return asyncio.run(main())


def alone(model: Model, request: Request) -> str:
    assert not isinstance(request.prompt, str)
    return "".join(f" {t}" for t in generate(model, np.array(request.prompt), request.output_tokens))


@pytest.mark.parametrize("options", [{"rows": 3, "chunk_tokens": 7}, {"rows": 1}, {"rows": 12, "chunk_tokens": 1}])
def test_a_reply_does_not_depend_on_its_company(model: Model, options: dict[str, int]) -> None:
    asks = [prompts(model.spec.vocab)(i) for i in range(10)]
    assert replies(model, asks, capacity=64, **options) == [alone(model, r) for r in asks]


def driven(model: Model, load: Any, *, rows: int = 4) -> tuple[Run, int]:
    async def main() -> tuple[Run, int]:
        async with Engine(model, rows=rows, capacity=64) as engine:
            run = await drive(engine, load, prompts(model.spec.vocab))
        return run, engine.steps_count

    return asyncio.run(main())


@pytest.mark.parametrize("load", [closed(3, 12), poisson(100.0, 12, seed=1), offline(12)], ids=lambda x: x.mode)
def test_the_load_generator_drives_it(model: Model, load: Any) -> None:
    run, _ = driven(model, load)
    assert [x.failure for x in run.exchanges] == [None] * 12
    for seen in run.exchanges:
        assert (seen.output_tokens, seen.finish) == (6, "length")
        assert len(seen.chunks_s) == 6
        assert seen.usage
        assert seen.sent_s is not None
        assert seen.intended_s <= seen.sent_s <= seen.chunks_s[0] <= seen.chunks_s[-1] <= seen.ended_s
    assert metrics.distribution(run.exchanges, "ttft/1").percentiles[0].state == "certified"


def test_rows_are_shared_not_waited_for(model: Model) -> None:
    """Twelve requests of six tokens take 72 steps one after the other, and far fewer four at a time."""
    _, together = driven(model, offline(12))
    _, one_by_one = driven(model, offline(12), rows=1)
    assert one_by_one == 72
    assert together <= 72 / 2


def test_who_left_before_its_turn_takes_none(model: Model) -> None:
    async def main() -> int:
        async with Engine(model, rows=1, capacity=64) as engine:

            async def read(tokens: int, patience_s: float) -> None:
                with contextlib.suppress(TimeoutError):
                    async with (
                        asyncio.timeout(patience_s),
                        aclosing(engine.stream(Request(index=0, prompt=(1, 2), output_tokens=tokens))) as events,
                    ):
                        async for _ in events:
                            pass

            first = asyncio.create_task(read(50, 60))
            await asyncio.sleep(0)
            await read(50, 0.001)  # queued behind the first, and gone before it is done
            await first
            await read(1, 60)
        return engine.steps_count

    assert asyncio.run(main()) == 51


def test_a_reader_who_leaves_frees_its_row(model: Model) -> None:
    async def main() -> int:
        async with Engine(model, rows=1, capacity=64) as engine:
            async with aclosing(engine.stream(Request(index=0, prompt=(1, 2), output_tokens=60))) as events:
                await anext(events)
            async for _ in engine.stream(Request(index=1, prompt=(1, 2), output_tokens=2)):
                pass
        return engine.steps_count

    assert asyncio.run(main()) < 60


@pytest.mark.parametrize(
    ("prompt", "tokens", "said"),
    [
        ("text", 2, "a prompt is token ids from 0 to"),
        ((), 2, "a prompt is token ids"),
        ((-1,), 2, "a prompt is token ids"),
        ((10**6,), 2, "a prompt is token ids"),
        ((1,) * 63, 2, "63 tokens of prompt and 2 of reply do not fit into 64"),
        ((1,), 0, "do not fit"),
    ],
)
def test_what_it_cannot_serve_fails_alone(model: Model, prompt: Any, tokens: int, said: str) -> None:
    async def main() -> tuple[str | None, str | None]:
        async with Engine(model, rows=2, capacity=64) as engine:
            bad = Request(index=0, prompt=prompt, output_tokens=tokens)
            good = Request(index=1, prompt=(1, 2), output_tokens=2)
            (x, _), (y, _) = await asyncio.gather(
                *(exchange(engine, r, started_s=0.0, intended_s=time.monotonic(), timeout_s=60) for r in (bad, good))
            )
        return x.failure, y.failure

    failed, fine = asyncio.run(main())
    assert said in (failed or "")
    assert fine is None


def test_a_model_that_breaks_is_a_failure_of_all_who_wait_and_of_all_who_come(model: Model) -> None:
    class Broken:
        spec = model.spec
        cache = model.cache

        def forward(self, tokens: Any, cache: Any, *, counts: Any = None) -> Any:
            raise MemoryError

    async def main() -> list[str | None]:
        async with Engine(Broken(), rows=2, capacity=64) as engine:
            run = await drive(engine, closed(2, 5), prompts(model.spec.vocab))
        return [x.failure for x in run.exchanges]

    assert asyncio.run(main()) == ["the engine failed: MemoryError: "] * 5


def test_an_engine_that_was_not_entered_is_misuse(model: Model) -> None:
    async def main() -> None:
        async for _ in Engine(model, rows=1, capacity=8).stream(Request(index=0, prompt=(1,), output_tokens=1)):
            pass

    with pytest.raises(MisuseError, match="use it in `async with`"):
        asyncio.run(main())
    with pytest.raises(MisuseError, match="chunk_tokens is 0"):
        Engine(model, chunk_tokens=0)


class Quiet:
    def begins(self, what: str, steps: int) -> None:
        pass

    def step(self) -> None:
        pass


def test_a_whole_benchmark_of_our_own_engine(model: Model) -> None:
    plan = Plan(
        seed="1", users=(1, 4), requests_count=6, repetitions_count=1, input_tokens=24, output_tokens=4, audits=False
    )

    async def main() -> ServeReport:
        async with Engine(model, rows=4, capacity=64, encode=hashed_words(model.spec.vocab)) as engine:
            return await bench(
                engine, plan, Quiet(), name="engine", model=model.spec.name, api="array", in_process=True
            )

    report = asyncio.run(main())
    assert report.input_tokens == 24
    assert [x.failure for level in report.levels for run in level.runs for x in run.exchanges] == [None] * 18
    assert codec.decode(codec.encode(report), ServeReport) == report


# --- one by one -------------------------------------------------------------------------------------------------------


def words(request: Request) -> Iterator[str]:
    for i in range(100):
        time.sleep(0.002)
        yield f" {request.index}.{i}"


def test_a_generator_is_served_to_one_at_a_time() -> None:
    async def main() -> Run:
        async with OneByOne(words, count=lambda r: len(str(r.prompt))) as server:
            return await drive(server, offline(4), lambda i: Request(index=i, prompt="abc", output_tokens=5))

    run = asyncio.run(main())
    assert [(x.failure, x.output_tokens, x.finish) for x in run.exchanges] == [(None, 5, "length")] * 4
    spans = sorted((x.chunks_s[0], x.chunks_s[-1]) for x in run.exchanges)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert run.exchanges[0].usage is not None
    assert run.exchanges[0].usage.input_tokens == 3


def test_a_generator_that_raises_is_a_failure_and_one_that_stops_says_so() -> None:
    def short(request: Request) -> Iterator[str]:
        yield " one"
        if request.index:
            raise KeyError(request.index)

    async def main() -> Run:
        async with OneByOne(short) as server:
            return await drive(server, closed(1, 2), lambda i: Request(index=i, prompt="abc", output_tokens=5))

    fine, broken = asyncio.run(main()).exchanges
    assert (fine.failure, fine.finish, fine.output_tokens) == (None, "stop", 1)
    assert broken.failure == "the engine failed: KeyError: 1"


def test_leaving_closes_what_is_held() -> None:
    closed_: list[bool] = []

    async def main() -> None:
        async with OneByOne(words, close=lambda: closed_.append(True)):
            pass

    asyncio.run(main())
    assert closed_ == [True]


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_whose_library_is_not_there_is_a_skip(name: str, tmp_path: Any) -> None:
    reason = missing(name)
    if reason is None:
        pytest.skip(f"{name} is installed")
    assert name.replace("_", "-") in reason
    with pytest.raises(Skip, match="is not installed"):
        open_adapter(name, tmp_path / "model")


def test_an_adapter_nobody_wrote_is_misuse(tmp_path: Any) -> None:
    with pytest.raises(MisuseError, match="no adapter 'vllm'; there are llama_cpp, onnxruntime, torch"):
        open_adapter("vllm", tmp_path)
