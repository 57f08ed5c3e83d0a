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
_GAP = b'"outcomes":[],"plan":[]'
_SEALED_GAP = b'"outcomes":[]'


def head_digest(report: Report) -> str:
    """Return the digest of all but the outcomes themselves, with the seal's own digest and signature left blank."""
    blank = replace(report.seal, digest="", signature=None)
    return codec.digest(replace(report, outcomes=(), seal=blank))


def seal(head: Report, outcome_digests: Sequence[str], key: Key | None, plan: Sequence[bytes] | None = None) -> Report:
    """Return the report's head, without outcomes, sealed over these digests and signed if there is a key.

    `plan` holds the canonical bytes of each job, for who has them already.
    """
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
    digest = codec.digest(assemble(drafted, (), plan))
    signature = key.sign(digest) if key else None
    return replace(drafted, seal=replace(drafted.seal, digest=digest, signature=signature))


def assemble(head: Report, outcomes: Sequence[bytes], plan: Sequence[bytes] | None = None) -> bytes:
    """Return the canonical bytes of a report from its head and those of each outcome, and of each job of its plan.

    What is long is spliced in: encoding it takes far longer than all the rest, and it was encoded once.
    """
    jobs = [codec.encode(job) for job in head.plan] if plan is None else plan
    digests = [b'"%s"' % digest.encode() for digest in head.seal.outcomes]
    data = codec.encode(replace(head, outcomes=(), plan=(), seal=replace(head.seal, outcomes=())))
    # Quotes inside strings are escaped, and no other list is called so: each gap is found once.
    before, _, rest = data.partition(_GAP)
    middle, _, after = rest.partition(_SEALED_GAP)
    parts = (before, b'"outcomes":[', b",".join(outcomes), b'],"plan":[', b",".join(jobs), b"]")
    return b"".join((*parts, middle, b'"outcomes":[', b",".join(digests), b"]", after))
