"""What came of an epoch: each verdict signed once, and all of them in one document."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import codec
from harness.market.verifier import runs
from harness.market.verifier.messages import Judged, Results, sign_verdict

if TYPE_CHECKING:
    from harness.market.verifier.epochs import Epoch
    from harness.market.verifier.runs import Run
    from harness.model import Verdict
    from harness.proof.signing import Key

__all__ = ["Teller"]

_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Teller:
    """Tells verdicts. For several threads: thousands take seconds to sign and to encode, and nobody's clock is to wait for it."""

    def __init__(
        self, clock: Callable[[], float], now: Callable[[], datetime], valid_for_s: float, key: Key | None
    ) -> None:
        self._clock, self._now, self._valid_for_s, self._key = clock, now, valid_for_s, key
        self._lock = threading.Lock()

    def told(self, run: Run, verdict: Verdict) -> Judged:
        """Sign a verdict, once for all who will ask; one that changes is signed again."""
        with self._lock:
            if run.judged is None or run.judged.verdict != verdict:
                judged = Judged(
                    schema="harness.judged/1",
                    challenge=run.challenge,
                    verdict=verdict,
                    judged_at=self._now().astimezone(UTC).strftime(_TIME),
                    verifier=None,
                    signature=None,
                )
                run.judged = sign_verdict(judged, self._key) if self._key else judged
            return run.judged

    def results(self, epoch: Epoch) -> Results:
        """Return what came of an epoch that has opened."""
        past_s, over = self._clock() - epoch.opens_at_s, self._is_over(epoch)
        verdicts = []
        for run in epoch.all_runs():
            absent = not run.arriving and (over or runs.missed(run, past_s))
            verdict = run.verdict or (runs.missing(run) if absent else None)
            if verdict:
                verdicts.append(self.told(run, verdict))
        return Results(schema="harness.results/1", epoch=epoch.number, verdicts=tuple(verdicts))

    def encoded(self, epoch: Epoch) -> bytes:
        """Return the same in its canonical bytes, which are kept once an epoch is over: only an answer that came too late changes them."""
        judged = sum(run.verdict is not None for run in epoch.all_runs())
        if epoch.told is not None and epoch.told[0] == judged:
            return epoch.told[1]
        settled = self._is_over(epoch) and not any(run.arriving for run in epoch.all_runs())
        data = codec.encode(self.results(epoch))
        if settled:
            epoch.told = judged, data
        return data

    def _is_over(self, epoch: Epoch) -> bool:
        return self._clock() - epoch.opens_at_s > self._valid_for_s
