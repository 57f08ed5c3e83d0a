"""Pings in the middle of a work: fetched, answered in time, with a step that fits the clock and a root that fits the commitment."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import pytest
from test_verifier_service import CPU, claimed, desk, key, opened

from harness.device.cpu import CpuDevice
from harness.errors import MisuseError
from harness.market.verifier.messages import PONG, Commitment, Pong, Steps, pong_digest
from harness.model import Verdict
from harness.proof import prover

STEPS = 8  # of the work, in as many tenths of a second once it has begun
STEP_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a device answers its pings; by default it is honest, and begins at once."""

    begins_s: float = 0.0  # after the opening
    fetches: bool = True
    fetched_after_s: float = 0.001
    took_s: float = 0.01
    answers: bool = True
    step: int | None = None  # that it always names
    backwards: bool = False
    lie: str | None = None  # its root
    sends_steps: bool = True


def judged(manner: Manner, due_s: tuple[float, ...]) -> Verdict:
    """Let a device work for 0.8 s, pinged at these times after the opening, and return the verdict."""
    at, clock = desk(pings=len(due_s), ping_most_s=0.2, slack=50.0)
    own = key()
    session = claimed(at, own, CPU.uuid)
    challenge = opened(at, clock, session)
    began_s, run = clock(), at.run_of(session, CPU.uuid)
    assert all(0.1 <= due - began_s <= 0.9 for due in run.ping_at_s)  # of the second that was claimed
    run.ping_at_s[:] = [began_s + due for due in due_s]
    roots: list[str] = []
    held = prover.commit(challenge, CpuDevice(CPU), watch=lambda _, root: roots.append(root))
    for number, due in enumerate(due_s):
        if not manner.fetches:
            break
        clock.at_s = began_s + due + manner.fetched_after_s
        nonce = at.ping(session, CPU.uuid).nonce
        assert nonce is not None
        clock.at_s += manner.took_s
        done = max(int((clock() - began_s - manner.begins_s) / STEP_S), 0)
        step = done if manner.step is None else manner.step
        step = STEPS - number if manner.backwards else min(step, STEPS)
        root = (manner.lie or roots[step - 1]) if step else None
        signature = own.sign(pong_digest(CPU.uuid, nonce, step, root), domain=PONG)
        pong = Pong(device_uuid=CPU.uuid, nonce=nonce, step=step, root=root, signature=signature)
        if manner.answers:
            at.pong(session, pong, at_s=clock())
            with pytest.raises(MisuseError, match="no ping that is under way"):
                at.pong(session, pong, at_s=clock())
    clock.at_s = max(clock(), began_s + manner.begins_s + STEPS * STEP_S)
    asked = at.commit(session, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    assert at.next_ping_s(session, CPU.uuid) is None
    if manner.sends_steps:
        at.take_steps(session, Steps(device_uuid=CPU.uuid, roots=tuple(roots)))
    transcript, openings = held.transcript(asked.asked, own)
    return at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock()).verdict


SPREAD = (0.15, 0.35, 0.55, 0.75)


@pytest.mark.parametrize(
    "manner",
    [
        Manner(),
        Manner(took_s=0.19),
        Manner(fetched_after_s=0.19),
        Manner(begins_s=STEPS * STEP_S),  # a start that takes as long as all the rest
    ],
)
@pytest.mark.parametrize("due_s", [SPREAD, (0.4,), (0.79, 0.7901)])
def test_an_honest_device_passes_even_late_and_slow(manner: Manner, due_s: tuple[float, ...]) -> None:
    verdict = judged(manner, due_s)
    assert verdict.accepted, verdict.faults


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        (Manner(fetches=False), "after the opening was never fetched"),
        (Manner(step=0), "at least 6.8 are done by then"),
        (Manner(took_s=0.21), "took 0.210 s; 0.200 are allowed"),  # each of them: a helper far away adds its way
        (Manner(fetched_after_s=0.21), "was fetched 0.210 s after it was due"),
        (Manner(answers=False), "took inf s"),
        (Manner(backwards=True), "step 7 comes after step 8"),
        (Manner(lie="ab" * 32), "signed another root of step 1 than was committed"),
        (Manner(sends_steps=False), "do not lead to the commitment"),
        (
            Manner(begins_s=2 * STEPS * STEP_S),
            "at least 1.3 are done by then",
        ),  # it knows nothing, and then all at once
    ],
)
def test_pongs_are_held_to_the_commitment_and_the_clock(manner: Manner, words: str) -> None:
    slow = {0: (0.16, 0.9), None: (0.16, 1.55)}
    verdict = judged(manner, slow[manner.step] if manner.begins_s or manner.step == 0 else SPREAD)
    assert not verdict.accepted
    assert any(words in fault.what for fault in verdict.faults), verdict.faults


def test_a_ping_that_was_not_due_long_enough_is_not_missed_and_that_is_said() -> None:
    verdict = judged(Manner(fetches=False), (0.7, 0.9))
    assert verdict.accepted, verdict.faults
    assert any("none was asked while it went on" in doubt for doubt in verdict.not_proven)
    assert not any("none was asked" in doubt for doubt in judged(Manner(), SPREAD).not_proven)


def test_a_strangers_pong_is_not_counted() -> None:
    at, clock = desk(pings=1)
    session = claimed(at, key(), CPU.uuid)
    opened(at, clock, session)
    clock.at_s += at.next_ping_s(session, CPU.uuid) or 0.0
    nonce = at.ping(session, CPU.uuid).nonce or ""
    forged = key().sign(pong_digest(CPU.uuid, nonce, 0, None), domain=PONG)
    with pytest.raises(MisuseError, match="not signed"):
        at.pong(session, Pong(device_uuid=CPU.uuid, nonce=nonce, step=0, root=None, signature=forged), at_s=clock())
