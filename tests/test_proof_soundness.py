"""Honest work passes; each way of cheating is caught, at the rate that was promised. And the checks that others use are shown to be broken."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from proofs import CPU, alike, answered, coarse, commit, faults, hankel, issued, narrow, skipping, zeroing

from harness.errors import MisuseError
from harness.model import Transcript
from harness.proof import bounds, bundle, chain, challenge, prover, verifier
from harness.proof.generator import random_bytes
from harness.proof.projection import Projection, tolerance
from harness.proof.task import MODES, scale, task_of

# --- honest -----------------------------------------------------------------------------------------------------------


def test_honest_work_passes_under_every_seed() -> None:
    for i in range(200):
        assert faults(answered(commit(issued(nonce=f"{i:064x}", openings=2)), f"{i:064x}")) == []


def test_a_true_row_has_no_residual_under_any_of_thousands_of_seeds() -> None:
    n = 16
    for i in range(2000):
        seed = i.to_bytes(32, "big")
        b = random_bytes(seed, "B", 0, n * n // 16).reshape(n, n).view(np.int8).astype(np.int32)
        row = random_bytes(seed, "X", 0, 1)
        assert Projection("int8", n, seed, seed).residual(row, row.view(np.int8).astype(np.int32) @ b) == 0


@pytest.mark.parametrize("mode", MODES)
def test_honest_work_passes_in_every_mode(mode: str) -> None:
    asked = issued(mode=mode, n=48, steps=3, openings=64, scans=3, scan_openings=16)
    held = commit(asked)
    held.scan("cd" * 32)
    assert faults(answered(held)) == []
    assert faults(answered(commit(asked), None)) == []


# --- left out ---------------------------------------------------------------------------------------------------------


def test_what_was_left_out_is_missed_as_often_as_promised() -> None:
    """A made-up row is found whenever it is opened, and the rows opened are so drawn that (1 - share)^J of answers open none."""
    n, steps, openings = 16, 25, 32
    cells = [divmod(int(c), n) for c in np.random.default_rng(1).permutation(n * steps)]
    for share in (0.02, 0.05, 0.10):
        false = set(cells[: round(share * n * steps)])
        asked = issued(n=n, steps=steps, openings=openings)
        held, task, seed = commit(asked, skipping(false)), task_of(asked.params), challenge.seed(asked)
        missed = 0
        for i in range(2000):
            opened = bundle.cells(task, seed, (held.root,), f"{i:064x}")
            missed += false.isdisjoint(opened)
            if i < 12:
                assert (faults(answered(held, f"{i:064x}")) == []) == false.isdisjoint(opened)
        expected = (1 - share) ** openings
        assert abs(missed / 2000 - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5


@pytest.mark.parametrize("mode", ["int8", "float16", "float32"])
def test_rows_that_are_all_alike_do_not_stay_so(mode: str) -> None:
    """Who makes all rows of a state one row has one product to compute from then on, and nearly every row would be true: but for the pad."""
    asked = issued(mode=mode, n=32, steps=64, openings=32)
    assert faults(answered(commit(asked))) == []
    cheat = alike()
    held = commit(asked, cheat)
    assert cheat.multiplied == 32 + 64  # rows, of 64 times 32; the first are those of a warm-up
    assert len(faults(answered(held))) == 8  # as many as are told


@pytest.mark.parametrize("steps", [8, 64])
@pytest.mark.parametrize("mode", ["int8", "float16"])
def test_what_is_saved_is_bounded_and_not_only_which_rows_are_false(mode: str, steps: int) -> None:
    """The best cheat we know: a row of zeros here and there, whose own product is known, so that each false row saves two of them.

    With as many false rows as pass once in ten, it has left out what a verdict allows for, and no more.
    """
    n, openings = 16, 48
    share = bounds.false_most_fraction(openings)
    cells = [(step, row) for row in range(n) for step in range(0, steps - 1, 3)]
    false = {cells[at] for at in np.random.default_rng(steps).permutation(len(cells))[: round(share * n * steps)]}
    asked, cheat = issued(mode=mode, n=n, steps=steps, openings=openings), zeroing(false)
    held, task, seed = commit(asked, cheat), task_of(asked.params), challenge.seed(asked)
    saved = 1 - (cheat.multiplied - n) / (n * steps)
    assert saved == pytest.approx(2 * len(false) / (n * steps))
    assert saved <= bounds.skipped_most_fraction(openings) + 2 / (n * steps)
    missed = 0
    for i in range(2000):
        opened = bundle.cells(task, seed, (held.root,), f"{i:064x}")
        missed += false.isdisjoint(opened)
        if i < 12:
            assert (faults(answered(held, f"{i:064x}")) == []) == false.isdisjoint(opened)
    assert abs(missed / 2000 - 0.1) < 0.1 * 0.5


def test_what_follows_from_zeros_is_as_random_as_any_state() -> None:
    """Or who makes one state zeros knows the next one, and so the product after that: ranks are what a product costs."""
    n, zeros = 64, np.zeros((64, 64), dtype=np.int32)
    for mode in ("int8", "float16"):
        sums = zeros if mode == "int8" else zeros.astype(np.float32)
        rows = np.stack([chain.advance(mode, own, b"s" * 32, 5, i) for i, own in enumerate(sums)])
        assert np.linalg.matrix_rank(chain.numbers(mode)[rows].astype(float)) == n
        assert len(np.unique(rows)) > 240
        assert abs(np.corrcoef(rows.astype(float))[np.triu_indices(n, 1)]).max() < 0.65
        later = np.stack([chain.advance(mode, own, b"s" * 32, 6, i) for i, own in enumerate(sums)])
        assert (rows == later).mean() < 0.02


def test_a_verdict_bounds_what_was_left_out() -> None:
    for openings, share in ((32, 0.069), (64, 0.035), (128, 0.018), (256, 0.009), (512, 0.0045)):
        assert bounds.false_most_fraction(openings) == pytest.approx(share, rel=0.03)
        assert (1 - bounds.false_most_fraction(openings)) ** openings == pytest.approx(0.1)
        assert bounds.skipped_most_fraction(openings) == 2 * bounds.false_most_fraction(openings)
    assert bounds.skipped_most_fraction(1) == 1
    ground = bounds.false_most_fraction(512, grinding_bits=64)
    assert 2**64 * (1 - ground) ** 512 == pytest.approx(0.1)


# --- another product --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("mask", [0xFE, 0xFC])
def test_fewer_bits_are_caught(mask: int, mended: bool) -> None:
    found = faults(answered(commit(issued(n=48), coarse(lambda state: state & np.uint8(mask), mended=mended))))
    wanted = "does not follow from its sums" if mended else "are not the product"
    assert len(found) == 4
    assert all(wanted in what for what in found)


def test_every_single_wrong_bit_of_a_sum_is_caught() -> None:
    projection, state = Projection("int8", 48, b"s" * 32, b"r"), random_bytes(b"s" * 32, "X", 0, 3)
    work = chain.Chain(CPU, b"s" * 32, task_of(issued(n=48).params))
    right = work.sums(state.reshape(1, 48))[0]
    assert projection.residual(state, right) == 0
    for bit in range(32):
        for place in (0, 47):
            wrong = right.copy()
            wrong[place : place + 1].view(np.uint32)[0] ^= np.uint32(1) << np.uint32(bit)
            assert projection.residual(state, wrong) > 0


def test_an_error_of_one_high_bit_is_missed_by_no_secret() -> None:
    """The hardest error there is, 2^31 in one place: a vector of small numbers, or of even ones, would miss it often."""
    codes, sums = np.zeros(16, dtype=np.uint8), np.zeros(16, dtype=np.int32)
    sums[7] = -(2**31)
    for i in range(200):
        projection = Projection("int8", 16, b"s" * 32, i.to_bytes(2, "big"))
        assert projection.residual(codes, sums) > 0
        assert len(np.unique(projection._vectors)) == 32


_NARROWER: dict[str, Any] = {  # what is cheaper, and close
    "float16": lambda x: np.round(x * 32) / 32,
    "bfloat16": lambda x: np.round(x * 32) / 32,
    "float32": lambda x: ((x.astype(np.float32).view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32).astype(float),
    "float64": lambda x: x.astype(np.float32).astype(float),
}


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("mode", _NARROWER)
def test_a_narrower_type_is_caught(mode: str, mended: bool) -> None:
    """8-bit operands for 16-bit ones, TF32 for float32, float32 for float64; whether or not the opened rows are made exact afterwards."""
    found = faults(answered(commit(issued(mode=mode, n=256, openings=4), narrow(_NARROWER[mode], mended=mended))))
    assert len(found) == 4


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
def test_exact_sums_pushed_to_the_bytes_of_cheap_ones_are_caught(mode: str) -> None:
    """The best that can be done for states computed with 8-bit operands: of all sums with these bytes, those nearest to the truth."""
    n, rng = 256, np.random.default_rng(3)
    exact = chain.numbers(mode)
    projection = Projection(mode, n, b"s" * 32, b"r")
    b = exact[random_bytes(b"s" * 32, "B", 0, n * n // 16).reshape(n, n)]
    for _ in range(20):
        codes = rng.integers(0, 256, n, dtype=np.uint8)
        truth = exact[codes] @ b
        assert projection.residual(codes, truth.astype(np.float32)) <= tolerance(mode, n) / 2
        cheap = np.round(exact * 32)[codes] / 32 @ (np.round(b * 32) / 32)
        cell, factor = np.floor(cheap * scale(n)).clip(-128, 127), scale(n)
        pushed = np.clip(truth, cell / factor, np.nextafter((cell + 1) / factor, -np.inf)).astype(np.float32)
        assert projection.residual(codes, pushed) > 20 * tolerance(mode, n)


def test_sums_in_half_precision_are_caught() -> None:
    n, exact = 256, chain.numbers("float16")
    projection = Projection("float16", n, b"s" * 32, b"r")
    b = exact[random_bytes(b"s" * 32, "B", 0, n * n // 16).reshape(n, n)]
    codes = np.random.default_rng(3).integers(0, 256, n, dtype=np.uint8)
    sums = np.zeros(n, dtype=np.float16)
    for at in range(0, n, 16):
        sums += (exact[codes][at : at + 16] @ b[at : at + 16]).astype(np.float16)
    assert projection.residual(codes, sums.astype(np.float32)) > 20 * tolerance("float16", n)


def test_floats_that_are_no_numbers_are_refused() -> None:
    held = commit(issued(mode="float64", n=16, openings=1))
    transcript, openings = answered(held)
    at = len(openings) - bundle.way_bytes(task_of(transcript.challenge.params), 1, 0) - 8
    for bad in (np.nan, np.inf, -np.inf):
        forged = openings[:at] + np.float64(bad).tobytes() + openings[at + 8 :]
        assert faults(resealed(transcript, forged)) == [faults(resealed(transcript, forged))[0]]
        assert "is not a number" in faults(resealed(transcript, forged))[0]


# --- structure --------------------------------------------------------------------------------------------------------


def test_a_structured_generator_gives_products_for_free_and_ours_does_not() -> None:
    """With entries that depend on i + j, c[i+1, j+1] = c[i, j] + a[i, n] b[n, j] - a[i, 0] b[0, j] in the matrices' extension: O(n^2) in all."""
    n = 32
    found = {}
    for name, whole in (
        ("hankel", hankel(n + 1)),
        ("ours", random_bytes(b"s" * 32, "B", 0, (n + 1) * 3).reshape(n + 1, 48)[:, : n + 1]),
    ):
        m = whole.view(np.int8).astype(np.int64)
        a, b = m[:, :n], m[:n]
        c = a @ b
        shortcut = c[:-1, :-1] + np.outer(m[:-1, n], m[n, :-1]) - np.outer(m[:-1, 0], m[0, :-1])
        found[name] = (shortcut == c[1:, 1:]).mean(), (m[1:, :-1] == m[:-1, 1:]).mean()
    assert found["hankel"] == (1.0, 1.0)
    assert found["ours"][0] < 0.01
    assert found["ours"][1] < 0.05


def test_a_structured_matrix_in_place_of_the_seeds_is_caught() -> None:
    class Structured(chain.Chain):
        def _drawn(self, label: str) -> Any:
            return hankel(self._task.n) if label == "B" else super()._drawn(label)

    assert all("are not the product" in what for what in faults(answered(commit(issued(n=48), Structured))))
    assert len(faults(answered(commit(issued(n=48), Structured)))) == 4


def test_a_first_state_of_ones_own_is_caught() -> None:
    """Work done long before, for a state that suited the prover: its chain is true, its beginning is not the seed's."""

    class Prepared(chain.Chain):
        def first(self) -> Any:
            return np.zeros((self._task.n, self._task.n), dtype=np.uint8)

    found = faults(answered(commit(issued(steps=1), Prepared)))
    assert len(found) == 4
    assert all("of the first state is not the seed's" in what for what in found)


def test_rows_are_drawn_from_all_that_was_said_before() -> None:
    task, drawn = task_of(issued(n=256).params), set()
    for seed in (b"s" * 32, b"t" * 32):
        for roots in (("ab" * 32,), ("cd" * 32,), ("ab" * 32, "cd" * 32)):
            for nonce in (None, "ab" * 32, "cd" * 32):
                drawn.add(bundle.cells(task, seed, roots, nonce))
                drawn.add(bundle.scan_cells(replace(task, scan_openings=4), seed, roots, nonce))
    assert len(drawn) == 36


# --- projections that are known beforehand ----------------------------------------------------------------------------


def test_a_projection_known_beforehand_passes_a_row_that_was_never_computed() -> None:
    """Four lists and a birthday: bytes that were made up, sums with these bytes, and the right projection modulo 2^40. Ours is drawn afterwards."""
    n, bits, size, rng = 64, 40, 1 << 14, np.random.default_rng(7)
    seed, codes = b"s" * 32, random_bytes(b"s" * 32, "X", 0, 4)
    known, made_up = Projection("int8", n, seed, b"known"), rng.integers(0, 256, n)
    r = known._vectors[0].view(np.uint64)
    target = np.uint64(int(known._projected[0] @ codes.view(np.int8).astype(np.int64)) % 2**bits)
    # Preimages of each byte under f, and four lists of choices for a quarter of the row each.
    pool = rng.integers(-(2**31), 2**31, 1 << 16).astype(np.int32)
    of_byte = chain.kept("int8", n, pool)
    preimages = [pool[of_byte == byte][:64] for byte in made_up]
    choices = rng.integers(0, 64, (n, size))
    sums = np.stack([preimages[j][choices[j]] for j in range(n)]).astype(np.int64).view(np.uint64)
    quarters = [(sums[q : q + n // 4] * r[q : q + n // 4, None]).sum(axis=0) for q in range(0, n, n // 4)]
    picked = _four_lists([part % np.uint64(2**bits) for part in quarters], target, bits)
    quarter_of = np.arange(n) // (n // 4)
    forged = sums[np.arange(n), np.array(picked)[quarter_of]].view(np.int64).astype(np.int32)
    assert (chain.kept("int8", n, forged) == made_up).all()
    assert (
        int(forged.astype(np.int64) @ r.view(np.int64)) % 2**bits == target
    )  # who checks with r known before is content
    assert Projection("int8", n, seed, b"drawn after").residual(codes, forged) > 0


def _four_lists(lists: list[Any], target: Any, bits: int) -> list[int]:
    """Find one number of each list so that they add up to a target modulo 2^bits (Wagner's algorithm)."""
    third, whole = np.uint64(2 ** (bits // 3)), np.uint64(2**bits)
    left = _pairs(lists[0], lists[1], np.uint64(0), third)
    right = _pairs(lists[2], lists[3], target % third, third)
    sums_left = (lists[0][left[0]] + lists[1][left[1]]) % whole
    sums_right = (target - lists[2][right[0]] - lists[3][right[1]]) % whole
    _, i, j = np.intersect1d(sums_left, sums_right, return_indices=True)
    assert i.size, "no solution among these lists: draw others"
    return [int(k) for k in (left[0][i[0]], left[1][i[0]], right[0][j[0]], right[1][j[0]])]


def _pairs(a: Any, b: Any, remainder: Any, modulus: Any) -> tuple[Any, Any]:
    """Return the indices of pairs whose sums leave a remainder."""
    order = np.argsort(b % modulus)
    wanted = (remainder + modulus - a % modulus) % modulus
    begin, end = (np.searchsorted((b % modulus)[order], wanted, side=side) for side in ("left", "right"))
    first = np.repeat(np.arange(a.size), end - begin)
    second = np.concatenate([order[lo:hi] for lo, hi in zip(begin, end, strict=True)])
    return first, second


def test_a_product_with_the_vector_is_no_answer() -> None:
    """Who knows r returns X (B r), in O(n^2), and no product was ever made. Here rows are opened, and this one is not theirs."""
    n, seed = 48, b"s" * 32
    known, codes = Projection("int8", n, seed, b"known"), random_bytes(b"s" * 32, "X", 0, 3)
    told = known._projected @ codes.view(np.int8).astype(np.int64)  # what a verifier that sends r asks for, and gets
    lazy = np.zeros(n, dtype=np.int32)
    b = chain.numbers("int8")[random_bytes(seed, "B", 0, n * n // 16).reshape(n, n)]
    assert (told == known._vectors @ (codes.view(np.int8).astype(np.int64) @ b)).all()
    assert known.residual(codes, lazy) > 0


def test_projections_are_drawn_from_what_the_prover_cannot_know(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    honest = Projection.__init__

    def spied(self: Projection, mode: str, n: int, seed: bytes, secret: bytes, **rest: Any) -> None:
        drawn.append(secret)
        honest(self, mode, n, seed, secret, **rest)

    monkeypatch.setattr(Projection, "__init__", spied)
    transcript, openings = answered(commit(issued()))
    for _ in range(2):
        assert verifier.faults_of(transcript, io.BytesIO(openings)) == ()
    verifier.faults_of(transcript, io.BytesIO(openings), salt=b"x")
    verifier.faults_of(replace(transcript, elapsed_s=1.0), io.BytesIO(openings), salt=b"x")
    assert len(set(drawn)) == 4  # a fresh salt each time, and all that was said besides


# --- tampering --------------------------------------------------------------------------------------------------------


def resealed(transcript: Transcript, openings: bytes) -> tuple[Transcript, bytes]:
    """Return forged openings with the digest that belongs to them: nobody keeps a forger from hashing."""
    import hashlib

    return replace(transcript, openings_digest=hashlib.sha256(openings).hexdigest()), openings


@pytest.mark.parametrize("mode", ["int8", "float32"])
def test_no_byte_of_an_opening_can_be_changed(mode: str) -> None:
    asked = issued(mode=mode, openings=2, scans=1, scan_openings=1, nonce="cd" * 32)
    transcript, openings = answered(commit(asked))
    assert faults((transcript, openings)) == []
    for at in range(len(openings)):
        forged = bytearray(openings)
        forged[at] ^= 0x10
        assert faults(resealed(transcript, bytes(forged))), f"byte {at} of {len(openings)} can be changed"


def test_an_answer_to_another_challenge_is_refused() -> None:
    """The same work under another seed, device, epoch, provider, beacon or size: nothing of it can be used again."""
    transcript, openings = answered(commit(issued()))
    for other in (
        issued(nonce="cd" * 32),
        issued(device="CPU-other"),
        issued(epoch=2),
        issued(provider="q"),
        issued(beacon="drand 2"),
        issued(beacon=None),
        issued(steps=3),
    ):
        assert faults((replace(transcript, challenge=other), openings))


def test_another_device_does_not_answer() -> None:
    with pytest.raises(MisuseError, match="the challenge is for device GPU-1, this is CPU-test"):
        prover.commit(issued(device="GPU-1"), CPU)


@pytest.mark.parametrize("field", ["commitment", "asked", "openings_digest"])
def test_what_binds_an_answer_cannot_be_changed(field: str) -> None:
    transcript, openings = answered(commit(issued()))
    changed: dict[str, Any] = {field: "12" * 32}
    assert faults((replace(transcript, **changed), openings))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_sums_of_rows_that_are_gone_are_caught_as_often_as_promised() -> None:
    """A prover who kept a share of the rows only sums what it has; what is missed is (1 - share)^J."""
    asked = issued(n=32, steps=4, scans=2, scan_openings=16)
    missed = 0
    for i in range(40):
        held = commit(asked)
        states, gone = held._work.states, i % 8 * 4  # up to 28 of 128 rows
        kept = [state.copy() for state in states]
        for row in range(gone):
            states[1 + row % 4][row // 4] = 0
        held.scan(f"{i:064x}")
        held._work.states[:] = kept  # it makes them again for the openings
        found = faults(answered(held, f"{i:064x}"))
        opened = bundle.scan_cells(
            task_of(asked.params), challenge.seed(asked), (held.root, *held.scan_roots), f"{i:064x}"
        )
        is_seen = any((row * 4 + state) < gone and row < 32 for state, row in opened)
        assert bool(found) == is_seen
        missed += not found
    assert 5 <= missed < 30


def test_a_scan_under_another_key_is_caught() -> None:
    held = commit(issued(n=32, scans=2, scan_openings=2))
    held.scan("cd" * 32)
    held.scan_key = "ce" * 32
    assert faults(answered(held))
    held.scan("cd" * 32)
    transcript, openings = answered(held)
    assert faults((transcript, openings)) == []
    assert faults((replace(transcript, scan_roots=transcript.scan_roots[::-1]), openings))
