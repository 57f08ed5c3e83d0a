"""A fleet's quotes in pieces through Ray: the same bytes in the same order, the same errors, and no more held than there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from test_fleet_report import card, copy, on
from test_scoring import gemm

from harness import codec, stats
from harness.cli import cli
from harness.cli.fleet_quotes import quotes_through
from harness.cluster import fanout, sharing
from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.model import Interval, Outcome, Quote, Report, Round
from harness.proof.seal import OPEN, seal
from harness.scoring import evidence, parquet, piecework
from harness.scoring.costs import Costs
from harness.scoring.profiles import Profile
from harness.scoring.terms import Deal


class RayError(Exception):
    """What all of Ray's errors derive from."""


class GetTimeoutError(RayError):
    """No answer in time."""


class TaskError(RayError):
    """What a function raised, as Ray tells it: a page, with the error in the last line."""

    cause = None


class FakeRay:
    """A cluster of two cores in this process: it works when it is asked for an answer, and counts what waits."""

    exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError)

    def __init__(self, answer: Callable[[bytes], object] | None = None) -> None:
        self._answer = answer
        self.waiting = self.most = self.sent = self.cancelled = 0
        self.chunks: list[bytes] = []
        self.how: dict[str, object] = {}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: bytes) -> bytes:
        return value

    def remote(self, **how: object) -> Any:
        self.how = how

        def made(work: Callable[[bytes, bytes], bytes]) -> Any:
            def call(common: bytes, chunk: bytes) -> Callable[[], object]:
                assert type(common) is type(chunk) is bytes
                self.chunks.append(chunk)
                self.waiting += 1
                self.most = max(self.most, self.waiting)
                return lambda: self._answer(chunk) if self._answer else work(common, chunk)

            return SimpleNamespace(remote=call)

        return made

    def get(self, ref: Callable[[], object], *, timeout: float) -> object:
        assert timeout == sharing._ANSWER_S
        self.waiting -= 1
        answer = ref()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, ref: object) -> None:
        self.cancelled += 1


def node(at: int) -> Report:
    own = card(at)
    results = [copy(own, 1e12 * (1 + at / 50), power_w=300.0), gemm(1e14, device=own, power_w=400.0)]
    return on(f"n{at}", (own, [timed(one) for one in results]))


def before(at: int) -> Report:
    """Return a report of the same card, sealed a day earlier."""
    own = card(at)
    whole = on(f"n{at}", (own, [timed(copy(own, 1.1e12)), timed(gemm(1.1e14, device=own))]))
    bare = replace(whole, sealed_at="2026-11-23T12:05:00Z", outcomes=(), seal=OPEN)
    return replace(seal(bare, whole.seal.outcomes, None), outcomes=whole.outcomes)


def timed(outcome: Outcome) -> Outcome:
    """Return a made-up result with the raw times that its interval follows from."""
    assert outcome.measurement
    times = [tuple(outcome.measurement.time_s * (1 + (i + j) % 5 / 1000) for j in range(3)) for i in range(4)]
    centre, low, high = stats.interval(stats.medians(times), stats.step(times))
    interval = Interval(low_s=max(low, min(map(min, times))), high_s=high, confidence_fraction=stats.CONFIDENCE)
    rounds = tuple(Round(at_s=float(i), batch=1, times_s=own) for i, own in enumerate(times))
    return Outcome(measurement=replace(outcome.measurement, time_s=centre, interval=interval, rounds=rounds))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of ten reports, each of which makes a chunk."""
    monkeypatch.setattr(piecework, "_CHUNK_BYTES", 1)
    folder = tmp_path / "results"
    folder.mkdir()
    for at in range(10):
        (folder / f"{at:03}.json").write_bytes(codec.encode(node(at)))
    return folder


@pytest.fixture
def table(results: Path) -> Path:
    out = results.parent / "fleet.parquet"
    parquet.export(*sorted(results.iterdir()), out=out)
    return out


def through(ray: FakeRay, *sources: piecework.Sent, **terms: Any) -> list[Quote]:
    return list(quotes_through(ray, piecework.order(**terms), sources))


def spelt(quotes: Any) -> list[bytes]:
    return [codec.encode(quote) for quote in quotes]


def test_quotes_in_pieces_are_those_of_one_process_to_the_byte_and_in_its_order(results: Path, table: Path) -> None:
    ray, sources = FakeRay(), (results, table, (results / "003.json").read_bytes())
    own = Profile(name="own", shares={"mem": Decimal("0.75"), "gemm_fp32": Decimal("0.25")}, memory_bytes=1 << 30)
    deal = Deal(
        at=date(2026, 10, 1), spot=True, interruptions_per_hour=Decimal("0.02"), term_s=86400, provider="vastai"
    )
    told: dict[str, Any] = {
        "costs": Costs(capex_usd=Decimal(1800)),
        "profile": own,
        "deal": deal,
        "history": [before(at) for at in range(10)],
    }
    for terms in ({}, {"basis": "cost", "costs": told["costs"]}, told):
        here = spelt(evidence.quote(*sources, **terms))
        assert len(here) == 21
        assert spelt(through(ray, *sources, **terms)) == here
    assert len(set(here)) == 10
    assert b'"good_count":2' in here[0]  # the history counts


def test_no_more_is_under_way_than_the_cores_can_take(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    through(ray, results)
    assert (ray.most, len(ray.chunks), ray.waiting) == (4, 10, 0)
    assert ray.how == {"num_cpus": 1, "max_retries": 2, "retry_exceptions": False}
    monkeypatch.setattr(sharing, "_HELD_BYTES", 5 * len(ray.chunks[0]) // 2)
    tight = FakeRay()
    through(tight, results)
    assert (tight.most, len(tight.chunks)) == (2, 10)


def test_reports_are_gathered_until_a_chunk_is_full(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (results / "000.json").stat().st_size
    monkeypatch.setattr(piecework, "_CHUNK_BYTES", 3 * size + size // 2)
    assert [len(piecework._CHUNKS.decode(chunk)) for chunk in piecework.chunks([results])] == [4, 4, 2]


def forge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"n5"', b'"n6"'))


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"devices":', b'"devises":'))


def remove(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nosuch")


@pytest.mark.parametrize(("harm", "kind"), [(forge, ForgeryError), (spoil, ForgeryError), (remove, MisuseError)])
def test_a_bad_report_is_told_as_one_process_tells_it_after_the_quotes_before_it(
    results: Path, harm: Callable[[Path], None], kind: type[HarnessError]
) -> None:
    bad = results / "005.json"
    harm(bad)
    (results / "008.json").write_bytes(b"{}")  # the first fault is the one that is told
    with pytest.raises(kind, match=str(bad)) as here:
        evidence.quote(results)
    for size in (1, 1 << 30):  # alone in its chunk, or with all others
        piecework._CHUNK_BYTES = size
        following = quotes_through(FakeRay(), piecework.order(), [results])
        found: list[Quote] = []
        with pytest.raises(kind) as there:
            found.extend(following)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
        assert len(found) == 5


def test_a_row_of_parquet_that_was_changed_is_refused_where_it_is_priced(table: Path) -> None:
    (_, (head, rows)), *_ = enumerate(parquet.pieces(table))
    piece = [("fleet.parquet", head, [(rows[0][0], rows[0][1] + b" "), *rows[1:]])]
    answer = piecework.price_chunk(piecework.order(), msgspec.msgpack.encode(piece))
    with pytest.raises(ForgeryError, match=r"fleet.parquet: a row does not give the outcome that it names"):
        list(piecework.quotes_in(answer))


def test_a_machine_with_other_data_is_refused_by_name(results: Path) -> None:
    order = piecework._ORDERS.decode(piecework.order())
    order.made_with["market_model"] = "0" * 64
    asked = msgspec.msgpack.encode(order)
    with pytest.raises(
        FailureError, match=r"has market_model .*, and who asks has 000000000000: install the same version"
    ):
        list(quotes_through(FakeRay(), asked, [results]))


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (GetTimeoutError(), FailureError, "no answer from the Ray cluster within 120 s"),
        (RayError("a page\nof text"), FailureError, r"lost on the Ray cluster \(RayError\)"),
        (TaskError("a page\nNo module named 'harness'\n"), FailureError, r"\(TaskError: No module named 'harness'\)"),
        (None, FailureError, "came back from the Ray cluster as NoneType; it should be bytes"),
        (b"\x80", ForgeryError, "not an answer of whoever prices a chunk"),
        (msgspec.msgpack.encode({"quotes": [b"{}"], "fault": None}), ForgeryError, "missing field"),
    ],
    ids=str,
)
def test_what_comes_back_wrong_ends_it_in_one_line_and_calls_off_the_rest(
    results: Path, answer: object, kind: type[HarnessError], said: str
) -> None:
    ray = FakeRay(lambda _: answer)
    with pytest.raises(kind, match=said):
        through(ray, results)
    assert ray.waiting == ray.cancelled == 3


def test_the_command_prints_the_same_with_ray_and_nothing_else(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    @contextmanager
    def connect(address: str, local_cpus: int | None = 1) -> Iterator[FakeRay]:
        told.append((address, local_cpus))
        print("Ray is talkative")
        yield FakeRay()

    monkeypatch.setattr(fanout, "connect", connect)
    monkeypatch.setattr("harness.cli.price.stand_by", told.append)
    monkeypatch.setattr("harness.cli.price.hushed", lambda ray: silenced())
    for options in (["--json"], ["--explain", "--profile", "decode"]):
        here = CliRunner().invoke(cli, ["quote", str(results), *options])
        there = CliRunner().invoke(cli, ["quote", str(results), *options, "--ray", "local"])
        assert (there.exit_code, there.stdout) == (here.exit_code, here.stdout), there.output
        assert here.exit_code == 0
    assert told == ["no quote was written", ("local", None)] * 2


@contextmanager
def silenced() -> Iterator[None]:
    """Stand in for what leads the descriptors away, which a test's own capture has already."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        yield
