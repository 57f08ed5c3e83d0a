"""What a run of a model leaves behind so that anybody can re-check it later on a CPU, one layer at a time.

    recorder = Recorder(challenge, model="smollm2-135m:fp32, synthetic:bytesum/1:7", grade="f32")
    model.forward(tokens, cache, logits="none", watch=recorder)
    receipt = recorder.receipt()                              # handed over; now the checker draws
    opening = recorder.open(drawn_layers(receipt, secret, 1)[0])
    wanted = wanted_of(spec, tokens.shape, model="smollm2-135m:fp32, synthetic:bytesum/1:7", grade="f32")   # the checker's own
    finding = recheck(receipt, opening, challenge, layer_from(spec, weights), wanted=wanted)

While it runs, `Recorder` is the model's `watch`. It keeps each layer's input and output and, once the run is over, commits to them: a
Merkle tree over SHA-256 of the rounded hidden states of each layer, row and 32 tokens, with a fingerprint of the final state. Which
layers are opened is drawn from the root and from something the prover did not know before. A checker is handed these layers' states,
recomputes each from its input alone, and compares.

Held to
    - What the checker asked to be run: a receipt of fewer layers, rows or tokens, of another width, model or grade is refused.
    - States that are opened are those that were committed to: leaves name layer, row, place, shape and challenge.
    - A layer that was skipped, or computed from other weights or in less precision than was claimed, differs from its recomputation by more
      than its grade of precision allows. What is compared is what the layer added to its input: a residual stream would hide it.
    - The input of the first layer is recomputed from the prompt's tokens, each other layer's input is the output committed by the one
      before it, and the fingerprint is recomputed from the last layer's output: a run of another prompt does not fit.
Not held to
    - Precision that is a little less than was claimed: see `GRADES`.
    - Layers that were not drawn: who cheats in k of L layers is missed by n draws with probability about (1 - k/L)^n.
    - When, where and on what it ran: that takes the clock of whoever asked.
    - Secrecy: opened states tell the prompt.

Hashes are of the prover's own numbers: two honest devices round differently and have different roots. Only opened states are compared.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import ForgeryError, MisuseError

if TYPE_CHECKING:
    from harness.inference.shapes import ModelSpec

__all__ = [
    "CHUNK_TOKENS",
    "GRADES",
    "Finding",
    "Fingerprint",
    "Opening",
    "Receipt",
    "Recorder",
    "Wanted",
    "compare_final",
    "drawn_layers",
    "fingerprint",
    "grade",
    "layer_from",
    "recheck",
    "relative_l2",
    "wanted_of",
]

Host = np.ndarray[Any, Any]

CHUNK_TOKENS = 32
PROJECTIONS = 64
TOP = 128
_KEPT_BITS = 20  # of a float32's mantissa: what is left out is noise
_ROUNDOFF = 2.0**-20  # relative, of a state: rounded to 20 bits after a sum in float32
_SAME_FINAL = 1e-5  # relative, of a projection: another CPU adds in another order

# The largest relative L2 error of each grade of arithmetic. Errors of two neighbours differ by about a decade. Of one layer, in a
# small model on a CPU, honest arithmetic in float16 was seen to be off by 7e-4; weights in bfloat16 that were to be float16 by 3e-3, int8 by
# 1e-2, int4 by 1e-1: so bfloat16 passes for fp16 and int8 for bf16 here. The limits leave room for GPUs, on which none was measured yet.
GRADES: Mapping[str, float] = {"f32": 5e-6, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The final state of one row's last token, in brief."""

    projections: tuple[float, ...]  # onto 64 vectors of random signs, in float32
    top: tuple[tuple[int, float], ...]  # the 128 largest magnitudes: place and value, by place


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What is handed over before anybody knows which layers will be asked for."""

    challenge_sha256: str
    model: str
    grade: str  # of arithmetic, as claimed
    layers: int
    rows: int
    tokens: int  # of a row
    hidden: int
    root: str
    final: tuple[Fingerprint, ...]  # one a row

    @property
    def chunks(self) -> int:
        """Pieces that a row is committed to in."""
        return -(-self.tokens // CHUNK_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the checker asked to be run. A receipt's own numbers are the prover's word: who stopped after one layer has a good receipt of one."""

    model: str
    grade: str
    layers: int
    rows: int
    tokens: int
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One layer's input and output, shape (rows, tokens, hidden), with the paths that lead from their leaves to the root."""

    layer: int
    entering: Host
    leaving: Host
    paths: tuple[tuple[str, ...], ...]  # of the leaves of `entering`, then of those of `leaving`


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What re-checking one layer showed."""

    layer: int
    relative_l2: float  # of what the layer added
    reached: str | None  # the finest grade that this fits; None where it fits none
    accepted: bool
    reason: str


def rounded(states: Host) -> Host:
    """Return states in float32 with a mantissa of 20 bits, rounded to the nearest."""
    bits = np.ascontiguousarray(states, dtype=np.float32).view(np.uint32)
    drop = np.uint32(23 - _KEPT_BITS)
    kept = ((bits >> (drop - np.uint32(1))) + np.uint32(1) >> np.uint32(1)) << drop
    return np.where(np.isfinite(states), kept.view(np.float32), np.float32(np.nan)).astype(np.float32)


class Recorder:
    """Keeps what a model tells its `watch`, and makes the receipt of it.

    The model is run once over the whole prompt, or in pieces one after another: what is told of a layer is appended.
    """

    def __init__(
        self, challenge: bytes, *, model: str, grade: str, to_host: Callable[[Any], Host] = np.asarray
    ) -> None:
        """Bind what follows to a challenge.

        Args:
            challenge: the verifier's bytes, from which prompt and signs are drawn.
            model: what ran, as both sides name it, with its format and where its weights come from.
            grade: of arithmetic, one of `GRADES`.
            to_host: copies an array of the device to the host.
        """
        _require_grade(grade)
        self._challenge, self._model, self._grade, self._to_host = challenge, model, grade, to_host
        self._told: dict[tuple[int, str], list[Host]] = {}
        self._states: tuple[Host, ...] | None = None
        self._tree: _Tree | None = None

    def __call__(self, layer: int, name: str, array: Any) -> None:
        """Be told of an array of a layer: its input "in" and its output "out", shape (rows, tokens, hidden)."""
        if name == "out" or (name == "in" and layer == 0):
            if self._tree is not None:
                msg = "this run has been committed to; a run of its own takes a recorder of its own"
                raise MisuseError(msg)
            self._told.setdefault((layer, name), []).append(rounded(self._to_host(array)))

    def receipt(self) -> Receipt:
        """Commit to all that was told. Raises `MisuseError` where the run left gaps."""
        states = self._commit()
        rows, tokens, hidden = states[0].shape
        challenge_sha256 = hashlib.sha256(self._challenge).hexdigest()
        assert self._tree is not None  # noqa: S101 - `_commit` has made it
        return Receipt(
            challenge_sha256=challenge_sha256,
            model=self._model,
            grade=self._grade,
            layers=len(states) - 1,
            rows=rows,
            tokens=tokens,
            hidden=hidden,
            root=self._tree.root.hex(),
            final=tuple(fingerprint(self._challenge, row[-1]) for row in states[-1]),
        )

    def open(self, layer: int) -> Opening:
        """Show one layer's states, with proof that they are those committed to."""
        states = self._commit()
        if not 0 <= layer < len(states) - 1:
            msg = f"no layer {layer!r}; there are {len(states) - 1}, from 0"
            raise MisuseError(msg)
        assert self._tree is not None  # noqa: S101 - `_commit` has made it
        each = self._tree.count // len(states)
        paths = [self._tree.path(at) for at in range(layer * each, (layer + 2) * each)]
        return Opening(
            layer=layer,
            entering=states[layer],
            leaving=states[layer + 1],
            paths=tuple(tuple(h.hex() for h in path) for path in paths),
        )

    def _commit(self) -> tuple[Host, ...]:
        """Return the input of the first layer and the output of each, committed to."""
        if self._states is None:
            layers = 1 + max((layer for layer, _ in self._told), default=-1)
            keys = [(0, "in"), *((layer, "out") for layer in range(layers))]
            missing = [key for key in keys if key not in self._told] if layers else "any layer"
            if missing:
                msg = f"nothing was told of {missing}: give this recorder to the model's forward pass as `watch`"
                raise MisuseError(msg)
            states = tuple(np.concatenate(self._told[key], axis=1) for key in keys)
            if len({s.shape for s in states}) > 1:
                msg = f"layers were told states of several shapes: {sorted({s.shape for s in states})}"
                raise MisuseError(msg)
            self._states = states
            self._tree = _Tree([leaf for at, s in enumerate(states) for leaf in _leaves(self._challenge, at, s)])
            self._told.clear()
        return self._states


def drawn_layers(receipt: Receipt, secret: bytes, count: int) -> tuple[int, ...]:
    """Return which layers to open, in order: drawn from the root and from bytes that the prover learns only now."""
    if not 1 <= count <= receipt.layers:
        msg = f"cannot draw {count!r} of {receipt.layers} layers"
        raise MisuseError(msg)
    seed = hashlib.sha256(b"layers" + secret + bytes.fromhex(receipt.root)).digest()
    ranked = sorted(range(receipt.layers), key=lambda at: hashlib.sha256(seed + struct.pack("<Q", at)).digest())
    return tuple(sorted(ranked[:count]))


def fingerprint(challenge: bytes, state: Host) -> Fingerprint:
    """Return the fingerprint of a state, shape (hidden,); signs follow from the challenge."""
    exact = state.astype(np.float64)
    projections = (_signs(challenge, len(state)) @ exact).astype(np.float32)
    largest = np.sort(np.argsort(-np.abs(exact), kind="stable")[:TOP])
    return Fingerprint(
        projections=tuple(map(float, projections)),
        top=tuple((int(at), float(np.float32(exact[at]))) for at in largest),
    )


def _signs(challenge: bytes, hidden: int) -> Host:
    """Return the random vectors of a challenge, +1 and -1, shape (64, hidden)."""
    need = -(-PROJECTIONS * hidden // 8)
    stream = hashlib.shake_256(b"signs" + challenge).digest(need)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[: PROJECTIONS * hidden]
    return 1.0 - 2.0 * bits.reshape(PROJECTIONS, hidden)


def wanted_of(spec: ModelSpec, shape: tuple[int, int], *, model: str, grade: str) -> Wanted:
    """Return what a receipt must be of, for a prompt of shape (rows, tokens).

    Raises:
        MisuseError: there is no such grade.
    """
    _require_grade(grade)
    rows, tokens = shape
    return Wanted(model=model, grade=grade, layers=spec.layers, rows=rows, tokens=tokens, hidden=spec.hidden)


def _require_grade(grade: str) -> None:
    if grade not in GRADES:
        msg = f"no grade {grade!r} of arithmetic; there are {', '.join(GRADES)}"
        raise MisuseError(msg)


def compare_final(receipt: Receipt, challenge: bytes, states: Host) -> tuple[float, int]:
    """Hold the final states of a second run of the whole model, shape (rows, hidden), against a receipt's fingerprints.

    Returns:
        The largest relative L2 distance of any row, estimated from the projections (its error is about 9 %), and the fewest of the
        largest magnitudes that a row has in common with its fingerprint.

    Raises:
        ForgeryError: it answers another challenge, or its fingerprints are none: not one a row, of 64 projections and 128 places.
        MisuseError: the states have another shape.
    """
    _same_challenge(receipt, challenge)
    _whole_final(receipt)
    if states.shape != (receipt.rows, receipt.hidden):
        msg = f"states of shape {states.shape}; the receipt is of {(receipt.rows, receipt.hidden)}"
        raise MisuseError(msg)
    mine = [fingerprint(challenge, state) for state in states]
    far = [
        relative_l2(np.array(a.projections), np.array(b.projections)) for a, b in zip(receipt.final, mine, strict=True)
    ]
    common = [len({p for p, _ in a.top} & {p for p, _ in b.top}) for a, b in zip(receipt.final, mine, strict=True)]
    return max(far), min(common)


def relative_l2(claimed: Host, true: Host) -> float:
    """Return the distance of two arrays by the length of the true one; infinite where that is 0 or anything is not finite."""
    length = float(np.linalg.norm(true.astype(np.float64)))
    far = float(np.linalg.norm(claimed.astype(np.float64) - true.astype(np.float64)))
    return (
        far / length if length > 0 and math.isfinite(far) and math.isfinite(length) else (0.0 if far == 0 else math.inf)
    )


def grade(error: float) -> str | None:
    """Return the finest grade of arithmetic that an error fits; None where it fits none."""
    return next((name for name, most in GRADES.items() if error <= most), None)


def recheck(  # noqa: PLR0913 - a receipt, what was opened of it, and how to recompute it
    receipt: Receipt,
    opening: Opening,
    challenge: bytes,
    layer: Callable[[int, Host], Host],
    *,
    wanted: Wanted,
    embedded: Host | None = None,
    forgiven_fraction: float = 0.0,
) -> Finding:
    """Re-check one opened layer.

    Args:
        receipt: what was committed to.
        opening: what was opened.
        challenge: what was asked.
        layer: recomputes a layer on its own: takes its index and its input, float32 of shape (rows, tokens, hidden), which begins with the
            first token, and returns its output. Its weights are those that were claimed, in the format that was claimed.
        wanted: what was to be run, by the checker's own knowledge: `wanted_of`.
        embedded: the true input of layer 0, shape (rows, tokens, hidden); needed where layer 0 is opened.
        forgiven_fraction: of the tokens, the worst, that are left out. A mixture of experts needs a tenth: where two experts are nearly
            level, rounding decides, and an honest token takes another way. It also is the part of the tokens a cheat may then touch.

    Raises:
        ForgeryError: the opening does not belong to the receipt, or the receipt not to the challenge, or to what was wanted.
        MisuseError: layer 0 was opened and `embedded` is missing.
    """
    _same_challenge(receipt, challenge)
    _same_run(receipt, wanted)
    _committed(receipt, opening, challenge)
    if opening.layer == receipt.layers - 1:
        _same_final(receipt, opening, challenge)
    limit = GRADES[receipt.grade]
    entering, leaving = (s.astype(np.float64) for s in (opening.entering, opening.leaving))
    if opening.layer == 0:
        if embedded is None:
            msg = "layer 0 was opened: its input is checked against the prompt, so `embedded` is needed"
            raise MisuseError(msg)
        off = relative_l2(entering, embedded)
        if off > limit:
            reason = f"its input is not that of the prompt: off by {off:.1e}, {receipt.grade} allows {limit:.0e}"
            return Finding(layer=0, relative_l2=off, reached=grade(off), accepted=False, reason=reason)
    true = np.asarray(layer(opening.layer, opening.entering), dtype=np.float64)
    if true.shape != entering.shape:
        msg = f"the layer that was recomputed has shape {true.shape}, not {entering.shape}"
        raise MisuseError(msg)
    error = _update_error(entering, leaving, true, limit, forgiven_fraction)
    accepted = error <= limit
    words = "within" if accepted else "beyond"
    reason = f"what it added is off by {error:.1e}, {words} the {limit:.0e} of {receipt.grade}"
    return Finding(layer=opening.layer, relative_l2=error, reached=grade(error), accepted=accepted, reason=reason)


def layer_from(spec: ModelSpec, weights: Mapping[str, Any], *, dtype: str = "float64") -> Callable[[int, Host], Host]:
    """Return what recomputes one layer of a model in NumPy, for `recheck`.

    Only the tensors of that layer are read, so `weights` may be one that makes or maps each when it is asked for.
    """
    from harness.inference.model import Model

    def layer(index: int, entering: Host) -> Host:
        model = Model(spec, weights, np, dtype=dtype, layers=[index])
        made: Host = model.layer(index, entering, model.cache(*entering.shape[:2]))
        return made

    return layer


def _update_error(entering: Host, leaving: Host, true: Host, limit: float, forgiven_fraction: float) -> float:
    """Return the relative L2 error of what a layer added, as the root of the mean square over tokens.

    Token by token, since a few have states a thousand times longer than the rest. Where a layer adds next to nothing to a long state, the
    rounding of that state is no error of the layer's.
    """
    added = np.linalg.norm(true - entering, axis=-1)
    noise = np.linalg.norm(entering, axis=-1) + np.linalg.norm(leaving, axis=-1)
    far = np.linalg.norm(leaving - true, axis=-1)
    if not np.isfinite(far).all() or not np.isfinite(noise).all():
        return math.inf
    scale = np.maximum(added + _ROUNDOFF / limit * noise, np.finfo(np.float64).tiny)
    errors = np.sort((far / scale).reshape(-1))
    kept = errors[: max(1, len(errors) - int(forgiven_fraction * len(errors)))]
    return float(np.sqrt(np.mean(kept**2)))


def _same_challenge(receipt: Receipt, challenge: bytes) -> None:
    if receipt.grade not in GRADES:
        what = f"no grade {receipt.grade!r} of arithmetic; there are {', '.join(GRADES)}"
        raise ForgeryError(what, "$.grade")
    if hashlib.sha256(challenge).hexdigest() != receipt.challenge_sha256:
        what = "it answers another challenge than the one that was given"
        raise ForgeryError(what, "$.challenge_sha256")


def _same_run(receipt: Receipt, wanted: Wanted) -> None:
    """Refuse a receipt of less, or of something else, than was wanted."""
    for name in (one.name for one in fields(Wanted)):
        told, right = getattr(receipt, name), getattr(wanted, name)
        if told != right:
            what = f"it is of {told!r}, where {right!r} was wanted"
            raise ForgeryError(what, f"$.{name}")


def _whole_final(receipt: Receipt) -> None:
    """Refuse fingerprints that are none: who names every place has each of the largest among them."""
    if len(receipt.final) != receipt.rows:
        what = f"{len(receipt.final)} fingerprints for {receipt.rows} rows"
        raise ForgeryError(what, "$.final")
    count = min(TOP, receipt.hidden)
    for row, told in enumerate(receipt.final):
        places = {place for place, _ in told.top}
        right = len(told.projections) == PROJECTIONS and len(told.top) == len(places) == count
        if not right or not all(0 <= place < receipt.hidden for place in places):
            what = f"a fingerprint has {PROJECTIONS} projections and {count} different places of {receipt.hidden}"
            raise ForgeryError(what, f"$.final[{row}]")


def _committed(receipt: Receipt, opening: Opening, challenge: bytes) -> None:
    """Refuse an opening that does not lead to the root."""
    shape = (receipt.rows, receipt.tokens, receipt.hidden)
    if not 0 <= opening.layer < receipt.layers:
        what = f"no layer {opening.layer}; the receipt has {receipt.layers}"
        raise ForgeryError(what, "$.layer")
    for name in ("entering", "leaving"):
        if getattr(opening, name).shape != shape:
            what = f"states of shape {getattr(opening, name).shape}, the receipt is of {shape}"
            raise ForgeryError(what, f"$.{name}")
    each = receipt.rows * receipt.chunks
    count, first = each * (receipt.layers + 1), each * opening.layer
    leaves = [
        *_leaves(challenge, opening.layer, opening.entering),
        *_leaves(challenge, opening.layer + 1, opening.leaving),
    ]
    if len(opening.paths) != len(leaves):
        what = f"{len(opening.paths)} paths for {len(leaves)} leaves"
        raise ForgeryError(what, "$.paths")
    for at, (leaf, path) in enumerate(zip(leaves, opening.paths, strict=True)):
        if _climbed(leaf, first + at, count, path) != receipt.root:
            what = "these states are not those that were committed to"
            raise ForgeryError(what, f"$.paths[{at}]")


def _same_final(receipt: Receipt, opening: Opening, challenge: bytes) -> None:
    """Refuse fingerprints that are not those of the last layer's output, beyond what another order of additions makes."""
    _whole_final(receipt)
    for row, (told, state) in enumerate(zip(receipt.final, opening.leaving, strict=True)):
        true = fingerprint(challenge, state[-1])
        off = relative_l2(np.array(told.projections), np.array(true.projections))
        if off > _SAME_FINAL or told.top != true.top:
            what = "it is not the fingerprint of the final state that was committed to"
            raise ForgeryError(what, f"$.final[{row}]")


def _leaves(challenge: bytes, at: int, states: Host) -> list[bytes]:
    """Return the leaves of one layer's states: a hash for each row and each 32 of its tokens."""
    binding = hashlib.sha256(challenge).digest()
    found = []
    for row, whole in enumerate(states):
        for chunk, start in enumerate(range(0, len(whole), CHUNK_TOKENS)):
            piece = np.ascontiguousarray(whole[start : start + CHUNK_TOKENS], dtype="<f4")
            place = struct.pack("<5Q", at, row, chunk, *piece.shape)
            found.append(hashlib.sha256(b"\0" + binding + place + piece.tobytes()).digest())
    return found


class _Tree:
    """A Merkle tree. A node without a neighbour goes up as it is; leaves and nodes are hashed apart, so that none passes for the other."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.count = len(leaves)
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            pairs = [_joined(*below[i : i + 2]) if i + 1 < len(below) else below[i] for i in range(0, len(below), 2)]
            self._levels.append(pairs)
        self.root = self._levels[-1][0]

    def path(self, at: int) -> list[bytes]:
        """Return the neighbours on the way from a leaf to the root."""
        found = []
        for level in self._levels[:-1]:
            if at ^ 1 < len(level):
                found.append(level[at ^ 1])
            at //= 2
        return found


def _joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _climbed(leaf: bytes, at: int, count: int, path: Sequence[str]) -> str | None:
    """Return the root that a leaf's path leads to, in hex; None where the path has not the length it must have."""
    rest = list(path)
    while count > 1:
        if at ^ 1 < count:
            if not rest:
                return None
            try:
                other = bytes.fromhex(rest.pop(0))
            except ValueError:
                return None
            leaf = _joined(other, leaf) if at % 2 else _joined(leaf, other)
        at, count = at // 2, -(-count // 2)
    return None if rest else leaf.hex()
