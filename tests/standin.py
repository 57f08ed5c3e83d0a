"""A market of one line of algebra, for tests of what is made of an estimate and not of the estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date

from harness.scoring.market_model import Contribution, Estimate, Features, Segment

__all__ = ["SHEETS", "StandIn"]

SHEETS = {
    "NVIDIA H100 80GB HBM3": Features(
        fp16_flops_per_s=989.4e12,
        fp32_flops_per_s=67e12,
        memory_bytes_per_s=3.35e12,
        memory_bytes=80 * 2**30,
        card_class="datacenter",
    ),
    "NVIDIA GeForce RTX 4090": Features(
        fp16_flops_per_s=165e12,
        fp32_flops_per_s=82.6e12,
        memory_bytes_per_s=1.008e12,
        memory_bytes=24 * 2**30,
        card_class="consumer",
    ),
}
_LEVELS = {"hyperscaler": 0.73, "neocloud": 0.0, "marketplace": -0.69}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """Log-linear, with names that bring their premium, and an interval that grows with the square root of its age."""

    digest: str = "5" * 64
    fitted: date = date(2026, 10, 10)
    premium: float = 0.1
    withheld: tuple[str, ...] = ()
    asked: list[Features] = field(default_factory=list)

    def features_of(self, gpu_name: str, memory_bytes: int | None = None) -> Features | None:
        return SHEETS.get(gpu_name)

    def estimate(
        self, features: Features, *, segment: Segment, provider: str | None, gpu_name: str | None, at: date | None
    ) -> Estimate:
        self.asked.append(features)
        days = max(((at or self.fitted) - self.fitted).days, 0)
        parts = {
            "fp16": 0.30 * math.log(features.fp16_flops_per_s / 1e14),
            "bandwidth": 0.27 * math.log(features.memory_bytes_per_s / 1e12),
            "memory": 0.31 * math.log(features.memory_bytes / 2**34),
            "segment": _LEVELS[segment],
            "name": self.premium if gpu_name in SHEETS else 0.0,
            "level": math.log(0.6),
        }
        price, half = math.fsum(parts.values()), math.sqrt(math.log(1.38) ** 2 + 0.11**2 * days / 30)
        return Estimate(
            log_price=None if self.withheld else price,
            low=None if self.withheld else price - half,
            high=None if self.withheld else price + half,
            contributions=tuple(Contribution(name=name, log_factor=log) for name, log in parts.items()),
            basis="measured" if features.measured else "spec",
            reasons=self.withheld,
            withheld=bool(self.withheld),
            confidence_fraction=0.8,
            as_of=self.fitted.isoformat(),
            model_digest=self.digest,
        )
