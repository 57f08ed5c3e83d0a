"""What a card itself or its driver admits is wrong with it: told by a fleet's report, and why it gets no price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.model import Device, TelemetrySample

__all__ = ["ailments"]


def ailments(device: Device, samples: Iterable[TelemetrySample], notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield them in plain words.

    Args:
        device: the card.
        samples: what its sensors said while it was measured.
        notes: what was seen of it before, each with its severity.
    """
    if device.unusable_reason:
        yield f"unusable: {device.unusable_reason}"
    errors = max((s.ecc_uncorrected_count or 0 for s in samples), default=0)
    if errors:
        yield f"{errors} uncorrected memory errors (ECC)"
    if device.remapping_failed:
        yield "a faulty row of memory could not be replaced"
    for severity, what in notes:
        known = (errors and "uncorrected memory errors" in what) or (device.remapping_failed and "faulty row" in what)
        if severity == "refuse" and not known:
            yield what
