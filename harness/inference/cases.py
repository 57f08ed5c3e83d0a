"""Cases of benchmarks that decode: what they all share, so that each benchmark is its axes and what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from harness.inference import ledger
from harness.inference.roof import roof
from harness.inference.subject import Decoding
from harness.inference.truth import Truth
from harness.registry import Case, Work

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.ledger import Cost
    from harness.inference.subject import Path, Subject

__all__ = ["DISTRIBUTION", "decoding_case", "model_case"]

DISTRIBUTION = "sums of four bytes, variance kept"


def model_case(of: Subject, cost: Cost, *, tokens: int, passes: int, said: str = "", **parts: Any) -> Case:
    """Return the case of a run that takes so many tokens through a model in so many passes; `parts` are `run`, `check` and others.

    It is cold where no cache holds what a pass reads, and then has a roof.
    """
    roofed = roof(of.backend, cost, of.dtype)
    return Case(
        work=Work(
            flops=cost.flops,
            bytes_moved=cost.bytes_moved,
            items=tokens,
            item=of.chosen.item,
            counting=of.told(said),
            nominal=True,
        ),
        cache="cold" if roofed else "n/a",
        footprint_bytes=cost.bytes_moved // passes,
        inputs=(of.sample(),),
        distribution=DISTRIBUTION,
        hide_launches=False,  # a mixture's experts are sorted with the host's help
        roof=roofed,
        **parts,
    )


def decoding_case(of: Subject, *, depth: int, steps: int, path: str = "array") -> Case:
    """Return the case of `steps` tokens a row after `depth`, one after another.

    Raises:
        Skip: path "fused" does not cover the model, the batch or the routing.
    """
    decoding = Decoding(of, depth=depth, steps=steps, path=cast("Path", path))
    spec, weights, batch = of.chosen.spec, of.chosen.weights, len(of.tokens)
    seen = decoding.experts_seen() if spec.experts else None
    cost = ledger.decode_steps(spec, batch=batch, depth=depth, steps=steps, weights=weights, experts_touched=seen)
    truth: list[Truth] = []

    def check(answer: tuple[Array, Array]) -> bool:
        truth[:] = truth or [Truth(of, length=depth + steps, kept=steps)]
        return truth[0].confirms(*answer)

    said = "; ".join(filter(None, [decoding.said, _experts_told(of, seen) if seen else ""]))
    return model_case(of, cost, tokens=batch * steps, passes=steps, said=said, run=decoding.run, check=check)


def _experts_told(of: Subject, seen: list[list[int]]) -> str:
    """Say how many experts a layer used in a step, beside what uniform routing is expected to use."""
    experts = of.chosen.spec.experts
    assert experts is not None  # noqa: S101 - they were seen
    counts = [n for step in seen for n in step]
    expected = ledger.experts_expected(experts, len(of.tokens))
    mean = sum(counts) / len(counts)
    return (
        f"experts a layer and step: {mean:.2f} of {experts.count}, {min(counts)} to {max(counts)}, "
        f"uniformly {expected:.2f} expected"
    )
