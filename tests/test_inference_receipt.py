"""Receipts: an honest run passes layer by layer, and skipped layers, fewer bits, other weights, prompts and challenges do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from harness.device.backend import Backend
from harness.errors import ForgeryError, MisuseError
from harness.inference import receipt, synth
from harness.inference.model import Model
from harness.inference.presets import choice
from harness.inference.quant import quantisable, quantise
from harness.inference.receipt import GRADES, Finding, Opening, Receipt, Recorder, drawn_layers, recheck
from harness.inference.specs import SPECS, ModelSpec

Host = np.ndarray[Any, Any]
Weights = Mapping[str, Host]

CHALLENGE, SECRET = b"marketplace nonce, node key, suite", b"drawn after the root was fixed"
WIDE = replace(SPECS["tiny-llama"], name="wide", hidden=192, heads=6, kv_heads=3, head_dim=32, ffn_width=384, vocab=256)
TOKENS = 70  # two whole chunks and a piece


@functools.cache
def made(spec: ModelSpec, seed: int = 5) -> Weights:
    """Random weights that keep the variance of what they multiply, so that no layer is idle."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in spec.tensors().items():
        if len(shape) == 1:
            found[name] = (0.0 if spec.zero_centred_norms else 1.0) + rng.normal(0, 0.1, shape).astype(np.float32)
        else:
            scale = 1.0 if "embed" in name else 1 / np.sqrt(shape[-1])
            found[name] = rng.normal(0, scale, shape).astype(np.float32)
    return found


def in_type(weights: Weights, kind: Callable[[Host], Host]) -> Weights:
    return {n: kind(w) if quantisable(n, w.shape) else w for n, w in weights.items()}


def bfloat16(w: Host) -> Host:
    bits = w.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)).view(np.float32)


FORMS: Mapping[str, Callable[[Host], Host]] = {
    "f32": lambda w: w,
    "fp16": lambda w: w.astype(np.float16).astype(np.float32),
    "bf16": bfloat16,
    "int8": lambda w: quantise(w, bits=8).dequantised(np),
    "int4": lambda w: quantise(w, bits=4).dequantised(np),
}


def prompt(spec: ModelSpec, seed: int = 0, rows: int = 2) -> Host:
    return np.random.default_rng(seed).integers(0, spec.vocab, (rows, TOKENS))


def recorded(
    spec: ModelSpec, weights: Weights, tokens: Host, *, grade: str = "f32", dtype: str = "float32"
) -> Recorder:
    recorder = Recorder(CHALLENGE, model=spec.name, grade=grade)
    model = Model(spec, weights, np, dtype=dtype)
    model.forward(tokens, model.cache(*tokens.shape), logits="none", watch=recorder)
    return recorder


class Checker:
    """What a verifier has: the claimed model, one layer of it at a time, and the prompt."""

    def __init__(self, spec: ModelSpec, weights: Weights, tokens: Host) -> None:
        self.spec = spec
        self.weights, self.tokens, self.layer = weights, tokens, receipt.layer_from(spec, weights)

    def __call__(
        self, made: Receipt, opening: Opening, challenge: bytes = CHALLENGE, *, grade: str | None = None, **more: Any
    ) -> Finding:
        embedded = self.weights["model.embed_tokens.weight"][self.tokens]
        wanted = receipt.wanted_of(self.spec, self.tokens.shape, model=self.spec.name, grade=grade or made.grade)
        return recheck(made, opening, challenge, self.layer, wanted=wanted, embedded=embedded, **more)


ARCHITECTURES = [n for n in SPECS if n.startswith("tiny-")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_honest_run_passes_in_every_layer(name: str) -> None:
    spec, tokens = SPECS[name], prompt(SPECS[name])
    weights = made(spec)
    recorder = recorded(spec, weights, tokens)
    check, told = Checker(spec, weights, tokens), recorder.receipt()
    for layer in range(spec.layers):
        finding = check(told, recorder.open(layer))
        assert finding.accepted, finding.reason
        assert finding.reached == "f32"


def test_the_run_may_come_in_pieces() -> None:
    tokens, weights = prompt(WIDE), made(WIDE)
    whole, pieces = recorded(WIDE, weights, tokens), Recorder(CHALLENGE, model=WIDE.name, grade="f32")
    model = Model(WIDE, weights)
    cache = model.cache(*tokens.shape)
    for piece in np.split(tokens, [31, 64], axis=1):
        model.forward(piece, cache, logits="none", watch=pieces)
    told = pieces.receipt()
    assert (told.tokens, told.chunks) == (TOKENS, 3)
    assert Checker(WIDE, weights, tokens)(told, pieces.open(1)).accepted
    far, common = receipt.compare_final(told, CHALLENGE, whole.open(WIDE.layers - 1).leaving[:, -1])
    assert far < 1e-5
    assert common == receipt.TOP


def worst(claimed: str, used: str, *, dtype: str = "float32") -> Finding:
    """The finding with the largest error, where `claimed` weights were promised and others used."""
    tokens, weights = prompt(WIDE), made(WIDE)
    recorder = recorded(WIDE, in_type(weights, FORMS[used]), tokens, grade=claimed, dtype=dtype)
    check, told = Checker(WIDE, in_type(weights, FORMS[claimed]), tokens), recorder.receipt()
    return max((check(told, recorder.open(i)) for i in range(WIDE.layers)), key=lambda f: f.relative_l2)


def test_each_form_of_weights_has_an_error_of_its_own() -> None:
    """About a decade apart; against the reference in float32, what a checker has who was told nothing."""
    errors = [worst("f32", used).relative_l2 for used in FORMS]
    assert errors == sorted(errors)
    assert errors[0] < GRADES["f32"] < errors[1] < GRADES["fp16"]
    assert errors[2] < GRADES["bf16"]
    assert errors[3] < GRADES["int8"] < errors[4]
    assert all(b > 2 * a for a, b in pairwise(errors)), errors


@pytest.mark.parametrize(
    ("claimed", "used"),
    [
        ("f32", "fp16"),
        ("f32", "bf16"),
        ("f32", "int8"),
        ("fp16", "int8"),
        ("fp16", "int4"),
        ("bf16", "int4"),
        ("int8", "int4"),
    ],
)
def test_fewer_bits_than_were_claimed_are_told(claimed: str, used: str) -> None:
    finding = worst(claimed, used)
    assert not finding.accepted
    assert finding.relative_l2 > GRADES[claimed]


def test_honest_arithmetic_in_float16_is_fp16_and_no_better() -> None:
    honest = worst("fp16", "fp16", dtype="float16")
    assert honest.accepted
    assert honest.reached == "fp16"


def skipping(weights: Weights, layer: int) -> Weights:
    """Weights with which a layer adds nothing: as if it was not run."""
    outs = tuple(f".layers.{layer}.{n}" for n in ("self_attn.o_proj.weight", "mlp.down_proj.weight"))
    return {n: w * (0 if n.endswith(outs) else 1) for n, w in weights.items()}


@pytest.mark.parametrize("grade", GRADES)
def test_a_skipped_layer_is_told_in_every_grade(grade: str) -> None:
    tokens, weights = prompt(WIDE), made(WIDE)
    recorder = recorded(WIDE, skipping(weights, 1), tokens, grade=grade)
    check, told = Checker(WIDE, weights, tokens), recorder.receipt()
    findings = [check(told, recorder.open(i)) for i in range(WIDE.layers)]
    assert [f.accepted for f in findings] == [True, False, True]
    assert 0.5 < findings[1].relative_l2 <= 1  # all that it should have added, by that and, in f32, some rounding


def test_another_prompt_is_told_by_the_first_layer() -> None:
    weights = made(WIDE)
    recorder = recorded(WIDE, weights, prompt(WIDE, seed=1))
    finding = Checker(WIDE, weights, prompt(WIDE))(recorder.receipt(), recorder.open(0))
    assert not finding.accepted
    assert "not that of the prompt" in finding.reason
    wanted = receipt.wanted_of(WIDE, (2, TOKENS), model=WIDE.name, grade="f32")
    with pytest.raises(MisuseError, match="`embedded` is needed"):
        recheck(
            recorder.receipt(),
            recorder.open(0),
            CHALLENGE,
            Checker(WIDE, weights, prompt(WIDE)).layer,
            wanted=wanted,
        )


def test_other_weights_are_told() -> None:
    tokens = prompt(WIDE)
    recorder = recorded(WIDE, made(WIDE, seed=6), tokens)
    assert not Checker(WIDE, made(WIDE), tokens)(recorder.receipt(), recorder.open(2)).accepted


def test_one_wrong_token_is_told_unless_it_is_forgiven() -> None:
    """Near ties of experts send an honest token another way; a dense model has no such excuse."""
    tokens, weights = prompt(WIDE), made(WIDE)
    model, recorder = Model(WIDE, weights), Recorder(CHALLENGE, model=WIDE.name, grade="fp16")

    def one_off(layer: int, name: str, states: Host) -> None:
        states = states.copy()
        if (layer, name) == (1, "out"):
            states[0, 40] += 1
        recorder(layer, name, states)

    model.forward(tokens, model.cache(*tokens.shape), logits="none", watch=one_off)
    check, told = Checker(WIDE, weights, tokens), recorder.receipt()
    assert not check(told, recorder.open(1)).accepted
    assert check(told, recorder.open(1), forgiven_fraction=0.1).accepted


def test_a_state_a_thousand_times_longer_hides_nothing() -> None:
    """Real models put huge numbers into one token: neither do these drown the others, nor does their rounding count as an error."""
    weights = dict(made(WIDE))
    tokens = prompt(WIDE)
    embedding = weights["model.embed_tokens.weight"].copy()
    embedding[tokens[0, 0], 7] = 3e4
    weights["model.embed_tokens.weight"] = embedding
    recorder = recorded(WIDE, weights, tokens)
    check, told = Checker(WIDE, weights, tokens), recorder.receipt()
    assert all(check(told, recorder.open(i)).accepted for i in range(WIDE.layers))
    skipped = recorded(WIDE, skipping(weights, 1), tokens)
    assert not check(skipped.receipt(), skipped.open(1)).accepted


# --- forgery ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest() -> tuple[Receipt, Recorder, Checker]:
    tokens, weights = prompt(WIDE), made(WIDE)
    recorder = recorded(WIDE, weights, tokens)
    return recorder.receipt(), recorder, Checker(WIDE, weights, tokens)


Honest = tuple[Receipt, Recorder, Checker]


def test_a_receipt_of_another_challenge_is_refused(honest: Honest) -> None:
    told, recorder, check = honest
    with pytest.raises(ForgeryError, match="another challenge"):
        check(told, recorder.open(1), b"something else")


def test_a_run_that_stopped_early_has_a_good_receipt_of_less_and_is_refused() -> None:
    tokens, weights = prompt(WIDE), made(WIDE)
    recorder, model = Recorder(CHALLENGE, model=WIDE.name, grade="f32"), Model(WIDE, weights)

    def first(layer: int, name: str, states: Host) -> None:
        if layer == 0:
            recorder(layer, name, states)

    model.forward(tokens, model.cache(*tokens.shape), logits="none", watch=first)
    told, check = recorder.receipt(), Checker(WIDE, weights, tokens)
    assert drawn_layers(told, SECRET, told.layers) == (0,)
    with pytest.raises(ForgeryError, match=r"\$\.layers: it is of 1, where 3 was wanted"):
        check(told, recorder.open(0))


def test_a_receipt_is_of_what_was_wanted(honest: Honest) -> None:
    told, recorder, check = honest
    fewer = Checker(WIDE, check.weights, check.tokens[:1])
    shorter = Checker(WIDE, check.weights, check.tokens[:, 1:])
    narrower = Checker(replace(WIDE, hidden=2 * WIDE.hidden), check.weights, check.tokens)
    another = Checker(replace(WIDE, name="another"), check.weights, check.tokens)
    for other, name in ((fewer, "rows"), (shorter, "tokens"), (narrower, "hidden"), (another, "model")):
        with pytest.raises(ForgeryError, match=rf"\$\.{name}: it is of"):
            other(told, recorder.open(1))
    with pytest.raises(ForgeryError, match=r"\$\.grade: it is of 'f32', where 'fp16' was wanted"):
        check(told, recorder.open(1), grade="fp16")
    with pytest.raises(MisuseError, match="no grade 'f64'"):
        check(told, recorder.open(1), grade="f64")


@pytest.mark.parametrize(
    "bad",
    [
        lambda told: (),
        lambda told: (*told.final, told.final[0]),
        lambda told: tuple(replace(f, projections=f.projections[:63]) for f in told.final),
        lambda told: tuple(replace(f, top=tuple((i, 0.0) for i in range(told.hidden))) for f in told.final),
        lambda told: tuple(replace(f, top=f.top[:1] * receipt.TOP) for f in told.final),
        lambda told: tuple(replace(f, top=(*f.top[1:], (told.hidden, 0.0))) for f in told.final),
    ],
)
def test_fingerprints_that_are_none_are_refused(honest: Honest, bad: Callable[[Receipt], Any]) -> None:
    told, recorder, check = honest
    false, last = replace(told, final=bad(told)), recorder.open(told.layers - 1)
    assert told.hidden > receipt.TOP
    with pytest.raises(ForgeryError, match=r"\$\.final"):
        receipt.compare_final(false, CHALLENGE, last.leaving[:, -1])
    with pytest.raises(ForgeryError, match=r"\$\.final"):
        check(false, last)


@pytest.mark.parametrize("side", ["entering", "leaving"])
def test_states_that_were_not_committed_to_are_refused(honest: Honest, side: str) -> None:
    told, recorder, check = honest
    opening = recorder.open(1)
    changed = getattr(opening, side).copy()
    changed[1, TOKENS - 1, 3] = np.nextafter(changed[1, TOKENS - 1, 3], np.float32(9))
    with pytest.raises(ForgeryError, match="not those that were committed to"):
        check(told, replace(opening, **{side: changed}))


def test_an_opening_of_one_layer_does_not_pass_for_another(honest: Honest) -> None:
    told, recorder, check = honest
    with pytest.raises(ForgeryError, match="not those that were committed to"):
        check(told, replace(recorder.open(1), layer=0))
    with pytest.raises(ForgeryError, match="no layer 3; the receipt has 3"):
        check(told, replace(recorder.open(1), layer=3))


def test_rows_cannot_be_exchanged(honest: Honest) -> None:
    told, recorder, check = honest
    opening = recorder.open(1)
    swapped = replace(opening, entering=opening.entering[::-1], leaving=opening.leaving[::-1])
    with pytest.raises(ForgeryError, match="not those that were committed to"):
        check(told, swapped)


def test_equal_states_have_leaves_of_their_own_in_every_place() -> None:
    states = np.ones((2, 64, 4), dtype=np.float32)
    leaves = [leaf for challenge in (b"a", b"b") for at in (0, 1) for leaf in receipt._leaves(challenge, at, states)]
    assert len(set(leaves)) == len(leaves) == 16


@pytest.mark.parametrize("spoil", [lambda p: p[:-1], lambda p: (*p, p[-1]), lambda p: (*p[:-1], "zz"), lambda p: ()])
def test_paths_that_do_not_lead_to_the_root_are_refused(honest: Honest, spoil: Callable[[Any], Any]) -> None:
    told, recorder, check = honest
    opening = recorder.open(1)
    with pytest.raises(ForgeryError, match=r"\$.paths"):
        check(told, replace(opening, paths=(spoil(opening.paths[0]), *opening.paths[1:])))
    with pytest.raises(ForgeryError, match=r"11 paths for 12 leaves"):
        check(told, replace(opening, paths=opening.paths[1:]))


def test_the_fingerprint_is_that_of_the_last_layer(honest: Honest) -> None:
    told, recorder, check = honest
    last = told.layers - 1
    assert check(told, recorder.open(last)).accepted
    for false in (
        replace(told, final=told.final[::-1]),
        replace(told, final=told.final[:1]),
        replace(told, final=(replace(told.final[0], top=told.final[0].top[:-1]), told.final[1])),
        replace(told, final=(replace(told.final[0], projections=told.final[0].projections[:-1]), told.final[1])),
    ):
        with pytest.raises(ForgeryError, match=r"\$.final"):
            check(false, recorder.open(last))


def test_states_that_are_no_numbers_are_never_accepted() -> None:
    tokens, weights = prompt(WIDE), made(WIDE)
    recorder, model = Recorder(CHALLENGE, model=WIDE.name, grade="int8"), Model(WIDE, weights)
    model.forward(tokens, model.cache(*tokens.shape), logits="none", watch=lambda i, n, x: recorder(i, n, x * np.nan))
    check, told = Checker(WIDE, weights, tokens), recorder.receipt()
    assert not check(told, recorder.open(1)).accepted


# --- what a receipt holds -----------------------------------------------------------------------------------------


def test_layers_are_drawn_from_the_root_and_the_secret(honest: Honest) -> None:
    told, _, _ = honest
    many = replace(told, layers=64)
    drawn = drawn_layers(many, SECRET, 8)
    assert drawn == drawn_layers(many, SECRET, 8) == tuple(sorted(set(drawn)))
    assert drawn != drawn_layers(many, b"another", 8)
    assert drawn != drawn_layers(replace(many, root="00" * 32), SECRET, 8)
    assert drawn_layers(many, SECRET, 64) == tuple(range(64))
    seen = {i for n in range(200) for i in drawn_layers(many, bytes([n]), 2)}
    assert len(seen) > 60
    with pytest.raises(MisuseError, match="cannot draw 65 of 64 layers"):
        drawn_layers(many, SECRET, 65)


def test_projections_tell_the_distance_of_two_states(honest: Honest) -> None:
    told, recorder, _ = honest
    final = recorder.open(told.layers - 1).leaving[:, -1]
    assert receipt.compare_final(told, CHALLENGE, final) == (0, receipt.TOP)
    rng = np.random.default_rng(1)
    for far in (1e-3, 1e-1):
        noise = rng.normal(size=final.shape)
        moved = final + far * noise * np.linalg.norm(final) / np.linalg.norm(noise)
        assert receipt.compare_final(told, CHALLENGE, moved)[0] == pytest.approx(far, rel=0.4)


def test_signs_are_the_challenges() -> None:
    state = np.random.default_rng(0).normal(size=256)
    one, two = receipt.fingerprint(b"a", state), receipt.fingerprint(b"b", state)
    assert one.top == two.top
    assert one.projections != two.projections
    assert receipt.fingerprint(b"a", state) == one
    assert abs(float(np.mean(receipt._signs(b"a", 4096)))) < 0.01


def test_states_are_rounded_to_twenty_bits() -> None:
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    kept = receipt.rounded(x)
    assert np.abs(kept / x - 1).max() <= 2.0**-21
    assert not (kept.view(np.uint32) & 7).any()
    assert np.array_equal(receipt.rounded(kept), kept)


def test_gaps_and_second_runs_are_refused() -> None:
    recorder = Recorder(CHALLENGE, model="m", grade="f32")
    with pytest.raises(MisuseError, match="nothing was told of any layer"):
        recorder.receipt()
    states = np.ones((1, 3, 4), dtype=np.float32)
    recorder(0, "in", states)
    recorder(1, "out", states)
    with pytest.raises(MisuseError, match=r"nothing was told of \[\(0, 'out'\)\]"):
        recorder.receipt()
    recorder(0, "out", states)
    told = recorder.receipt()
    with pytest.raises(MisuseError, match="has been committed to"):
        recorder(0, "in", states)
    with pytest.raises(MisuseError, match="no layer 2; there are 2"):
        recorder.open(told.layers)
    with pytest.raises(MisuseError, match="no grade 'f64'"):
        Recorder(CHALLENGE, model="m", grade="f64")


@pytest.mark.parametrize("count", range(1, 14))
def test_every_leaf_of_every_tree_leads_to_its_root_and_no_other_does(count: int) -> None:
    leaves = [bytes([i]) * 32 for i in range(count)]
    tree = receipt._Tree(leaves)
    for at, leaf in enumerate(leaves):
        path = [h.hex() for h in tree.path(at)]
        assert receipt._climbed(leaf, at, count, path) == tree.root.hex()
        assert all(
            receipt._climbed(leaf, other, count, path) != tree.root.hex() for other in range(count) if other != at
        )
        assert receipt._climbed(b"x" * 32, at, count, path) != tree.root.hex()


def test_a_receipt_of_weights_from_a_seed_is_checked_by_making_one_layer(cpu: Backend) -> None:
    """As the two sides would: the prover holds the model, the checker a seed, and makes the tensors of the layer it has drawn."""
    chosen, asked = choice("tiny-qwen3-moe:int8"), list[str]()

    class Watched(synth.Synthetic):
        def __getitem__(self, name: str) -> Any:
            asked.append(name)
            return super().__getitem__(name)

    tokens = synth.tokens(7, (1, TOKENS), chosen.spec.vocab)
    model = Model(chosen.spec, synth.synthetic(chosen.spec, 7, cpu, bits=8))
    recorder = Recorder(CHALLENGE, model=chosen.text, grade="f32")
    model.forward(tokens, model.cache(1, TOKENS), logits="none", watch=recorder)
    told = recorder.receipt()
    wanted = receipt.wanted_of(chosen.spec, (1, TOKENS), model=chosen.text, grade="f32")
    (drawn,) = drawn_layers(told, b"3", 1)
    assert 0 <= drawn < chosen.spec.layers
    for seed, accepted in ((7, True), (8, False)):
        weights = Watched(chosen.spec, seed, cpu, bits=8)
        finding = recheck(
            told, recorder.open(drawn), CHALLENGE, receipt.layer_from(chosen.spec, weights), wanted=wanted
        )
        assert finding.accepted is accepted
    assert {n.split(".")[2] for n in asked} == {str(drawn)}
