"""Where the processes that measure pin up what they are doing: a file a device, replaced whole, in a folder of whoever watches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from harness import codec
from harness.cluster.spool import spool_folder
from harness.errors import ForgeryError
from harness.measure.moment import Moment, Teller
from harness.model import Device

__all__ = ["own_place", "pinned", "place", "teller"]


def place(folder: Path, device: Device) -> Path:
    """Return the file of a device."""
    return folder / codec.digest(device.uuid)[:32]


def own_place(device: Device) -> Path:
    """Return the file of a device on its own node, for who watches from another: one a device, used again by the next run."""
    return spool_folder() / f"moment-{place(Path(), device).name}"


def teller(path: str | None) -> Teller:
    """Return what pins moments to a file; without one, nothing is pinned."""
    return Teller(partial(_pin, Path(path))) if path else Teller()


def pinned(folder: Path, device: Device) -> Moment | None:
    """Return the last moment of a device, or None where there is none."""
    try:
        return codec.decode(place(folder, device).read_bytes(), Moment)
    except (OSError, ForgeryError):
        return None


def _pin(path: Path, moment: Moment) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(codec.encode(moment))
    beside.rename(path)
