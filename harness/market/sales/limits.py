"""How often somebody may ask: token buckets, bounded in number, with nothing kept of who asked but when."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Buckets", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one address may do, and all together."""

    per_minute: int = 240
    all_per_minute: int = 6000
    addresses_most: int = 10_000  # that are told apart; beyond, the one that asked longest ago is forgotten
    body_most_bytes: int = 1 << 16
    body_s: float = 10.0


@dataclass(slots=True)
class Buckets:
    """Token buckets: a quarter of a minute's requests at once, and then as they flow in."""

    per_minute: int
    most: int
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def wait_s(self, name: str) -> float:
        """Take from somebody's bucket; return 0, or how long until there is something in it."""
        now, rate, holds = self.clock(), self.per_minute / 60, max(self.per_minute / 4, 1.0)
        left, at = self._left.pop(name, (holds, now))
        left = min(holds, left + (now - at) * rate)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now)
        if len(self._left) > self.most:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate

    def __len__(self) -> int:
        return len(self._left)
