"""Looks for replies that are not what they seem: from a cache, held back and sent in one burst, too short, miscounted.

Most of it is asked, not computed: rounds of probes, one at a time, whose answers an honest server cannot help giving. A probe's verdict in
one round may be noise; it counts if at least as many rounds agree as a fair coin would give once in a hundred audits (11 of 12). So an
honest server, however noisy, is flagged by one of them in at most one of a hundred audits.

Found: whole replies kept for a known prompt, one reply for all prompts; tokens held back; a first token from nowhere; early ends; counts
that contradict what arrived, the request, or the server's own tokeniser.
Not found: a smaller or coarser model than named, or a server that behaves while it is probed and recognises probes by their prompts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from harness.inference import metrics
from harness.inference.exchange import Exchange, Request, Server
from harness.inference.loadgen import exchange

__all__ = ["ROUNDS", "AuditName", "Finding", "ProbeRound", "Probes", "judge", "least_agreeing", "probe"]

AuditName = Literal["cached", "same_reply", "buffered", "first_token", "short", "usage"]

ROUNDS = 12
_ECHOES = 7  # as many must all agree
_FASTER = 0.9  # of the time: MLPerf's TEST04 allows a tenth
_SHORT = 0.9  # of the tokens asked for: MLPerf's TEST09 allows a tenth
_LATE_SHARE = 0.1  # of a stream's time, its end
_BURST_SHARE = 0.5  # of a stream's tokens
_STREAM_TOKENS = 8  # a reply of fewer says nothing about its flow
_TELLING_TOKENS = 32  # stories begin alike: a small model's twelve first tokens were the same in 3 of 34
_OFTEN = 0.05  # of replies: a rare slip is a defect, not a practice
_RETOKENISED = 1.3  # a text need not be cut into tokens as it was made of them
_SLACK_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one audit came to. `unknown`: it could not be made; `what` says why."""

    audit: AuditName
    state: Literal["clear", "flagged", "unknown"]
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRound:
    """Three answers that are held against each other."""

    fresh: Exchange  # a prompt that was never asked, a whole reply
    again: Exchange  # the one that is asked in every round
    brief: Exchange  # a prompt that was never asked, one token


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What the server answered. `echoes`: of some replies, how many tokens the server claimed and finds in the same text as a prompt."""

    rounds: tuple[ProbeRound, ...]
    echoes: tuple[tuple[int, int], ...]


def least_agreeing(rounds: int, chance: float = 0.01) -> int:
    """Return how many of these rounds must agree so that fair coins do it with at most this chance; more than all for too few."""
    tail, agreeing = 0, rounds + 1
    while agreeing > 0 and tail + math.comb(rounds, agreeing - 1) <= chance * 2**rounds:
        agreeing -= 1
        tail += math.comb(rounds, agreeing)
    return agreeing


async def probe(
    server: Server,
    ask: Callable[[int], Request],
    *,
    rounds: int = ROUNDS,
    timeout_s: float = 120.0,
    told: Callable[[], object] = lambda: None,
) -> Probes:
    """Ask, one request at a time.

    Args:
        server: who is asked.
        ask: makes a request of an index; different ones have prompts that have nothing in common. Request 0 is asked again and again.
        rounds: of three requests each.
        timeout_s: of one request.
        told: called after each round.
    """

    async def one(request: Request) -> tuple[Exchange, str]:
        now_s = asyncio.get_running_loop().time()
        return await exchange(server, request, started_s=now_s, intended_s=now_s, timeout_s=timeout_s)

    known = ask(0)
    await one(known)
    found: list[ProbeRound] = []
    echoes: list[tuple[int, int]] = []
    for i in range(rounds):
        request, brief = ask(2 * i + 1), ask(2 * i + 2)
        fresh, text = await one(request)
        again, _ = await one(known)
        short, _ = await one(_briefly(brief, brief.prompt))
        found.append(ProbeRound(fresh=fresh, again=again, brief=short))
        if i < _ECHOES and isinstance(request.prompt, str) and text:
            echo, _ = await one(_briefly(request, f"{request.prompt}{text}"))
            counted = _difference(echo, fresh)
            if counted is not None and fresh.usage and fresh.usage.output_tokens is not None:
                echoes.append((fresh.usage.output_tokens, counted))
        told()
    return Probes(rounds=tuple(found), echoes=tuple(echoes))


def _briefly(request: Request, prompt: str | tuple[int, ...]) -> Request:
    return Request(index=request.index, prompt=prompt, output_tokens=1)


def _difference(longer: Exchange, shorter: Exchange) -> int | None:
    counts = [x.usage.input_tokens if x.usage else None for x in (longer, shorter)]
    return None if counts[0] is None or counts[1] is None else counts[0] - counts[1]


def judge(probes: Probes, exchanges: Sequence[Exchange] = ()) -> tuple[Finding, ...]:
    """Return what each audit came to.

    Args:
        probes: the answers to the probes.
        exchanges: of runs under load, all of different prompts; they are judged where one reply by itself says enough.
    """
    rounds = [r for r in probes.rounds if all(x.failure is None for x in (r.fresh, r.again, r.brief))]
    whole = [x for x in (*(r.fresh for r in rounds), *exchanges) if x.failure is None]
    return (
        _cached(rounds),
        _same_reply(whole),
        _buffered(rounds, whole),
        _first_token(rounds),
        _short(whole),
        _usage(whole, probes.echoes),
    )


def _agree(rounds: Sequence[ProbeRound], holds: Callable[[ProbeRound], bool]) -> tuple[bool, int]:
    count = sum(map(holds, rounds))
    return count >= least_agreeing(len(rounds)), count


# --- cached -----------------------------------------------------------------------------------------------------------


def _cached(rounds: Sequence[ProbeRound]) -> Finding:
    """A known prompt may have its first token sooner, for its prefix is known. Its other tokens must be computed like any."""
    if least_agreeing(len(rounds)) > len(rounds):
        return _too_few("cached", len(rounds))
    faster, count = _agree(rounds, lambda r: _generation_s(r.again) < _FASTER * _generation_s(r.fresh))
    whole, _ = _agree(rounds, lambda r: _e2e_s(r.again) < _FASTER * _e2e_s(r.fresh))
    if faster and whole:
        share = median(_e2e_s(r.again) / _e2e_s(r.fresh) for r in rounds)
        what = f"a prompt asked before is answered in {share:.0%} of the time, its later tokens included ({count} of {len(rounds)} rounds)"
        return Finding(audit="cached", state="flagged", what=what)
    sooner, _ = _agree(rounds, lambda r: _ttft_s(r.again) < _FASTER * _ttft_s(r.fresh))
    prefix = "; its first token comes sooner, as from a cache of prefixes, which distinct prompts do not profit from"
    return Finding(
        audit="cached",
        state="clear",
        what=f"a prompt asked before is generated no faster{prefix if sooner else ''}",
    )


def _generation_s(x: Exchange) -> float:
    """Time from the first chunk to the last; of a reply that came in a lump or a burst, all of it."""
    flows = max(x.tokens[0] / x.output_tokens, _late_share(x)) <= _BURST_SHARE
    return x.chunks_s[-1] - x.chunks_s[0] if flows else _e2e_s(x)


def _e2e_s(x: Exchange) -> float:
    return x.chunks_s[-1] - x.intended_s


def _ttft_s(x: Exchange) -> float:
    return x.chunks_s[0] - x.intended_s


def _same_reply(whole: Sequence[Exchange]) -> Finding:
    texts = [x.text_sha256 for x in whole if x.output_tokens >= _TELLING_TOKENS]
    if len(texts) < ROUNDS:
        return _too_few("same_reply", len(texts), f"replies of {_TELLING_TOKENS} tokens or more")
    repeated = len(texts) - len(set(texts))
    what = f"{repeated} of {len(texts)} replies to different prompts had been given before, to the letter"
    return Finding(audit="same_reply", state="flagged" if repeated > 0.1 * len(texts) else "clear", what=what)


# --- buffered ---------------------------------------------------------------------------------------------------------


def _buffered(rounds: Sequence[ProbeRound], whole: Sequence[Exchange]) -> Finding:
    """The first token of a long reply comes as soon as the only one of a short reply, and the rest as they are made."""
    streams = [x for x in whole if x.output_tokens >= _STREAM_TOKENS]
    if len(streams) < ROUNDS or least_agreeing(len(rounds)) > len(rounds):
        return _too_few("buffered", min(len(streams), len(rounds)), f"replies of {_STREAM_TOKENS} tokens or more")
    lumps = sum(x.tokens[0] > _BURST_SHARE * x.output_tokens for x in streams)
    bursts = sum(_late_share(x) > _BURST_SHARE for x in streams)
    held, count = _agree(rounds, lambda r: _ttft_s(r.fresh) > (_e2e_s(r.brief) + _e2e_s(r.fresh)) / 2)
    said = [
        f"{lumps} of {len(streams)} replies had most of their tokens in the first chunk: not streamed"
        if lumps > len(streams) / 2
        else "",
        f"{bursts} of {len(streams)} streams had most of their tokens in the last tenth of their time: a burst at the end"
        if bursts > len(streams) / 2
        else "",
        f"the first token of a long reply comes late, that of a short one at once ({count} of {len(rounds)} rounds)"
        if held
        else "",
    ]
    found = "; ".join(filter(None, said))
    return Finding(
        audit="buffered", state="flagged" if found else "clear", what=found or "tokens come as they are made"
    )


def _late_share(x: Exchange) -> float:
    """Share of the tokens after the first chunk that come in the last tenth of the stream; 0 for a single chunk."""
    later = x.output_tokens - x.tokens[0]
    late_s = x.chunks_s[-1] - _LATE_SHARE * (x.chunks_s[-1] - x.chunks_s[0])
    late = sum(k for at, k in zip(x.chunks_s[1:], x.tokens[1:], strict=True) if at >= late_s)
    return late / later if later else 0.0


def _first_token(rounds: Sequence[ProbeRound]) -> Finding:
    """Once a token is out, the next takes one step. If it takes longer than the first did, the first cost nothing."""
    told = [r for r in rounds if len(r.fresh.chunks_s) > 3]  # noqa: PLR2004 - a first, a second, and gaps to compare with
    if least_agreeing(len(told)) > len(told):
        return _too_few("first_token", len(told), "rounds with four chunks or more")

    def from_nowhere(r: ProbeRound) -> bool:
        second, *later = metrics.gaps(r.fresh)
        return second > _ttft_s(r.fresh) and second > 3 * median(later)

    flagged, count = _agree(told, from_nowhere)
    what = f"the second token took longer than the first, and than any step after it, in {count} of {len(told)} rounds"
    return Finding(audit="first_token", state="flagged" if flagged else "clear", what=what)


# --- short, miscounted ------------------------------------------------------------------------------------------------


def _short(whole: Sequence[Exchange]) -> Finding:
    if not whole:
        return _too_few("short", 0, "whole replies")
    share = fmean(x.output_tokens / x.asked_tokens for x in whole)
    own = sum(x.finish == "stop" for x in whole)
    why = f"; {own} of {len(whole)} ended of their own accord" if own else ""
    what = f"replies have {share:.0%} of the tokens asked for, on average{why}"
    return Finding(audit="short", state="flagged" if share < _SHORT else "clear", what=what)


def _usage(whole: Sequence[Exchange], echoes: Sequence[tuple[int, int]]) -> Finding:
    """A claim is held against the request, against what arrived, and against the server's own count of the same text."""
    claims = [(x, x.usage.output_tokens) for x in whole if x.usage and x.usage.output_tokens is not None]
    if not claims:
        what = "the server counts no tokens: each chunk is taken for one"
        return Finding(audit="usage", state="unknown", what=what)
    contradictions = (
        ("than were asked for", "more", sum(n > x.asked_tokens + 1 for x, n in claims)),
        ("than bytes of text arrived", "more", sum(n > x.text_bytes + 1 for x, n in claims)),
        ("than chunks with content arrived", "fewer", sum(n < len(x.chunks_s) - 1 for x, n in claims)),
    )
    said = [
        f"{count} of {len(claims)} replies are claimed to have {which} tokens {than}"
        for than, which, count in contradictions
        if count > _OFTEN * len(claims)
    ]
    inflated = sum(claim > _RETOKENISED * max(counted, 0) + _SLACK_TOKENS for claim, counted in echoes)
    if echoes and inflated >= least_agreeing(len(echoes)):
        said.append(f"sent back as prompts, {inflated} of {len(echoes)} replies have far fewer tokens than claimed")
    return Finding(
        audit="usage",
        state="flagged" if said else "clear",
        what="; ".join(said)
        or f"claims agree with what arrived ({len(claims)} replies, {len(echoes)} sent back as prompts)",
    )


def _too_few(
    audit: AuditName,
    count: int,
    what: str = "rounds without a failure",
) -> Finding:
    return Finding(audit=audit, state="unknown", what=f"{count} {what} are too few to tell")
