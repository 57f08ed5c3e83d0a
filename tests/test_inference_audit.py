"""Each way to cheat is flagged, each honest server is not, in virtual time: a hundred honest servers take seconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from scripted import SCRIPTS, Script, Simulated
from virtualtime import run_virtually

from harness.inference.audit import Finding, Probes, judge, least_agreeing, probe
from harness.inference.exchange import Request
from harness.inference.loadgen import Run, drive, poisson


def ask(tokens: int, start: int = 0) -> Callable[[int], Request]:
    return lambda i: Request(
        index=i, prompt=f"{start + i} and {(start + i) * 7919} some more words", output_tokens=tokens
    )


@functools.cache
def audited(
    script: Script, *, seed: int = 0, rounds: int = 12, tokens: int = 32, load: bool = True
) -> dict[str, Finding]:
    async def both() -> tuple[Probes, Run | None]:
        server = Simulated(script, seed)
        probes = await probe(server, ask(tokens), rounds=rounds)
        run = await drive(server, poisson(10.0, 20, seed=seed), ask(tokens, start=1000)) if load else None
        return probes, run

    probes, run = run_virtually(both())
    return {f.audit: f for f in judge(probes, run.exchanges if run else ())}


def flagged(script: Script, **options: Any) -> set[str]:
    return {name for name, f in audited(script, **options).items() if f.state == "flagged"}


@pytest.mark.parametrize(
    ("cheat", "audit", "said"),
    [
        ("caching", "cached", "a prompt asked before is answered in"),
        ("parrot", "same_reply", "replies to different prompts had been given before"),
        ("burst", "buffered", "comes late, that of a short one at once (12 of 12 rounds)"),
        ("burst-after-first", "buffered", "in the last tenth of their time: a burst at the end"),
        ("decoy", "first_token", "the second token took longer than the first"),
        ("short", "short", "replies have 16% of the tokens asked for, on average; 32 of 32 ended of their own accord"),
        ("usage", "usage", "32 of 32 replies are claimed to have more tokens than were asked for"),
        ("liar", "usage", "sent back as prompts, 7 of 7 replies have far fewer tokens than claimed"),
    ],
)
def test_each_cheat_is_flagged(cheat: str, audit: str, said: str) -> None:
    found = audited(SCRIPTS[cheat])[audit]
    assert found.state == "flagged"
    assert said in found.what


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(
    ("cheat", "only"),
    [
        ("caching", {"cached"}),
        ("parrot", {"same_reply"}),
        ("burst", {"buffered"}),
        ("burst-after-first", {"buffered", "first_token"}),  # the second token is late indeed
        ("decoy", {"first_token"}),
        ("short", {"short"}),
        ("usage", {"usage"}),
        ("liar", {"usage", "short"}),  # it claims more than it sent, and less than it was asked for
    ],
)
def test_a_cheat_is_flagged_for_what_it_does_and_in_noise_too(cheat: str, only: set[str], jitter: float) -> None:
    assert flagged(replace(SCRIPTS[cheat], jitter=jitter), seed=3) == only


def test_a_reply_in_one_piece_is_flagged_as_not_streamed() -> None:
    found = audited(Script(bundle=32))
    assert found["buffered"].state == "flagged"
    assert "not streamed" in found["buffered"].what


def test_a_cheat_of_both_cache_and_burst_is_flagged_for_both() -> None:
    assert {"cached", "buffered"} <= flagged(Script(caches=True, hold=0))


@pytest.mark.parametrize(
    "honest",
    [
        Script(),
        SCRIPTS["prefix"],
        SCRIPTS["noisy"],
        Script(bundle=5, jitter=0.3),
        Script(jitter=0.8),
        Script(first_s=0.002, gap_s=0.02, jitter=0.5),  # a short prompt: the first token costs no more than another
        Script(first_s=2.0, gap_s=0.002, jitter=0.3),  # a long one
        Script(stall_after=10, stall_s=0.5),
        Script(
            first_s=0.5, gap_s=0.01, stall_after=1, stall_s=0.2
        ),  # its second token is late, but its first was no sooner
        Script(freeze_every_s=3.0, freeze_s=0.5),
        Script(usage_factor=None, jitter=0.3),
        Script(fail_every=9, jitter=0.3),
    ],
    ids=lambda s: (
        ", ".join(f"{k}={getattr(s, k)}" for k in s.__slots__ if getattr(s, k) != getattr(Script(), k)) or "plain"
    ),
)
def test_an_honest_server_is_not_flagged(honest: Script) -> None:
    assert flagged(honest) == set()


def test_forty_honest_noisy_servers_are_not_flagged() -> None:
    """By the coins, each of three audits may flag one in 300; of a hundred such servers (seeds 0 to 99) none was flagged."""
    noisy = replace(SCRIPTS["noisy"], jitter=0.6)
    found = [flagged(noisy, seed=seed, load=False, tokens=16) for seed in range(40)]
    assert sum(map(bool, found)) == 0


def test_a_cache_of_prefixes_is_named_and_not_flagged() -> None:
    found = audited(SCRIPTS["prefix"])["cached"]
    assert found.state == "clear"
    assert "cache of prefixes" in found.what


def test_too_few_answers_are_unknown_not_clear() -> None:
    found = audited(Script(), rounds=4, load=False)
    assert {n for n, f in found.items() if f.state == "unknown"} == {"cached", "same_reply", "buffered", "first_token"}
    assert found["cached"].what == "4 rounds without a failure are too few to tell"
    nothing = audited(Script(fail_every=1), load=False)
    assert {f.state for f in nothing.values()} == {"unknown"}


def test_a_server_that_counts_nothing_is_unknown_in_its_counts() -> None:
    assert audited(Script(usage_factor=None))["usage"].state == "unknown"


def test_replies_too_short_to_flow_say_nothing_of_their_flow() -> None:
    assert audited(Script(), tokens=4)["buffered"].state == "unknown"


def test_token_ids_are_not_sent_back_as_text() -> None:
    def ids(i: int) -> Request:
        return Request(index=i, prompt=(i, i + 1), output_tokens=8)

    probes = run_virtually(probe(Simulated(Script()), ids, rounds=7))
    assert probes.echoes == ()


@pytest.mark.parametrize(("rounds", "agreeing"), [(12, 11), (7, 7), (6, 7), (20, 16), (1, 2), (0, 1)])
def test_as_many_must_agree_as_coins_seldom_do(rounds: int, agreeing: int) -> None:
    assert least_agreeing(rounds) == agreeing
    if agreeing <= rounds:
        chance = sum(math.comb(rounds, k) for k in range(agreeing, rounds + 1)) / 2**rounds
        assert chance <= 0.01
        assert chance + math.comb(rounds, agreeing - 1) / 2**rounds > 0.01
