"""Seals a report, and splices outcomes into its canonical bytes without encoding the earlier ones again.

The seal lists the digest of every outcome and one digest over all the rest, list included. A changed outcome can so be told from a
removed one, and from a changed head; and a report that grows by one outcome costs one encoding, not all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness import codec
from harness.model import Report, Seal
from harness.proof.signing import Key

__all__ = ["OPEN", "assemble", "head_digest", "seal"]

OPEN = Seal(outcomes=(), digest="", algorithm="unsigned", public_key=None, signature=None)
_GAP = b'"outcomes":[]'


def head_digest(report: Report) -> str:
    """Return the digest of all but the outcomes themselves, with the seal's own digest and signature left blank."""
    blank = replace(report.seal, digest="", signature=None)
    return codec.digest(replace(report, outcomes=(), seal=blank))


def seal(head: Report, outcome_digests: Sequence[str], key: Key | None) -> Report:
    """Return the report's head, without outcomes, sealed over these digests and signed if there is a key."""
    drafted = replace(
        head,
        outcomes=(),
        seal=Seal(
            outcomes=tuple(outcome_digests),
            digest="",
            algorithm="ed25519" if key else "unsigned",
            public_key=key.public_hex if key else None,
            signature=None,
        ),
    )
    digest = head_digest(drafted)
    signature = key.sign(digest) if key else None
    return replace(drafted, seal=replace(drafted.seal, digest=digest, signature=signature))


def assemble(head: Report, outcomes: Sequence[bytes]) -> bytes:
    """Return the canonical bytes of a report from its head and the canonical bytes of each outcome."""
    data = codec.encode(replace(head, outcomes=()))
    if not outcomes:
        return data
    # Quotes inside strings are escaped, and the seal's own list is not empty here: the gap is found once.
    before, gap, after = data.partition(_GAP)
    return b"".join((before, gap[:-1], b",".join(outcomes), b"]", after))
