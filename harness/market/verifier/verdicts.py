"""Verdicts as a verifier gave them, in a file: what a provider shows to others."""

from __future__ import annotations

from pathlib import Path

from harness import codec
from harness.errors import MisuseError
from harness.market.verifier.messages import Judged, require_verdict_of

__all__ = ["keep", "verdicts"]


def verdicts(file: str | Path, *, verifier: str | None = None) -> tuple[Judged, ...]:
    """Read verdicts that `harness prover run --out` kept, and refuse them all if one is not its verifier's.

    An accepted file says that the verifier said so, and nothing of whether it is true: `Judged`.

    Args:
        file: what was kept.
        verifier: the public key that must have signed each; without one a verdict may be unsigned, but not wrongly signed.

    Raises:
        MisuseError: the file cannot be read.
        ForgeryError: it holds something else, or a verdict is another's, unsigned, or was changed.
    """
    found = codec.read(Path(file), tuple[Judged, ...])
    for one in found:
        require_verdict_of(one, verifier)
    return found


def keep(judged: tuple[Judged, ...], file: str | Path) -> None:
    """Write verdicts to a new file.

    Raises:
        MisuseError: it exists, or cannot be written.
    """
    try:
        with Path(file).open("xb") as out:
            out.write(codec.encode(judged))
    except OSError as err:
        msg = f"cannot write the verdicts to {str(file)!r}: {err.strerror}"
        raise MisuseError(msg) from err
