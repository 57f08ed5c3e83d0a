"""Quantised weights: no number further off than half a scale, and the layout that the kernels are told of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.device.backend import Backend
from harness.errors import MisuseError
from harness.inference.quant import GROUP, Quantised, quantisable, quantise, stored_bytes
from harness.inference.specs import SPECS
from harness.inference.synth import synthetic
from harness.inference.weights import load

BITS = (8, 4)
MOST = {8: 127, 4: 7}


def sample(shape: tuple[int, ...] = (6, 128), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scale_of_each(q: Quantised) -> np.ndarray:
    scales: np.ndarray = np.repeat(q.scales.astype(np.float64), q.group, axis=-1)
    return scales


@pytest.mark.parametrize("bits", BITS)
@given(
    x=arrays(
        np.float32,
        (2, 64),
        elements=st.floats(-4e5, 4e5, width=32)
        | st.floats(-(2.0**-10), 2.0**-10, width=32)
        | st.floats(-(2.0**-20), 2.0**-20, width=32),
    )
)
@settings(max_examples=80, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_scale(bits: int, x: np.ndarray) -> None:
    q = quantise(x, bits=bits)
    peak = np.abs(x.reshape(2, 2, GROUP)).max(axis=-1)
    assert (q.scales.astype(np.float64) <= peak / MOST[bits] * (1 + 2**-10) + 2.0**-24).all()  # and no scale is idle
    assert (np.abs(q.dequantised(np) - x.astype(np.float64)) <= scale_of_each(q) * (0.5 + 1e-5)).all()


@pytest.mark.parametrize(("bits", "most"), [(8, 0.0065), (4, 0.115)])
def test_the_error_of_bell_shaped_weights_is_what_so_many_bits_allow(bits: int, most: float) -> None:
    """A peak of 32 normal numbers is near 2.1 deviations: steps of 2.1 / 127 and 2.1 / 7, each over the square root of 12."""
    x = sample((64, 512))
    error = np.linalg.norm(quantise(x, bits=bits).dequantised(np) - x) / np.linalg.norm(x)
    assert most / 2 < error < most


@pytest.mark.parametrize("bits", BITS)
def test_what_is_quantised_already_stays_as_it_is(bits: int) -> None:
    once = quantise(sample(), bits=bits)
    again = quantise(once.dequantised(np), bits=bits)
    assert np.array_equal(once.values, again.values)
    assert np.array_equal(once.scales, again.scales)


def test_the_layout_of_8_bits_is_the_row() -> None:
    x = sample((3, 64))
    q = quantise(x, bits=8)
    assert (q.values.dtype, q.values.shape) == (np.int8, (3, 64))
    assert (q.scales.dtype, q.scales.shape) == (np.float16, (3, 2))
    assert np.array_equal(q.values, np.rint(x / np.repeat(q.scales.astype(np.float32), 32, axis=1)))


def test_the_layout_of_4_bits_puts_neighbours_into_the_halves_of_a_word() -> None:
    """Written out by hand: what a kernel reads, not what `dequantised` does."""
    ramp = np.array([-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 0] * 2, dtype=np.float32)
    q = quantise(ramp[None] / 7, bits=4)
    assert (q.values.dtype, q.values.shape) == (np.uint32, (1, 4))
    for w, word in enumerate(map(int, q.values[0])):
        for k in range(4):
            pair = (word >> (4 * k)) & 0x000F000F
            assert (pair & 0xFFFF) - 8 == ramp[8 * w + 2 * k]
            assert (pair >> 16) - 8 == ramp[8 * w + 2 * k + 1]
    halves = np.array([(int(q.values[0, 0]) & 0x000F000F) | 0x64006400], dtype=np.uint32).view(np.float16)
    assert list(halves) == [1024 + 1, 1024 + 2]  # the first two of the ramp, as q + 8
    assert q.values.tobytes()[0] & 15 == 1  # little-endian: the first weight is in the first byte


@pytest.mark.parametrize("bits", BITS)
def test_a_row_can_be_read_sixteen_bytes_at_a_time(bits: int) -> None:
    q = quantise(sample((5, 96)), bits=bits)
    row_bytes = q.values.nbytes // 5
    assert row_bytes % 16 == 0
    assert q.values.flags.c_contiguous
    assert q.scales.flags.c_contiguous


@pytest.mark.parametrize(("bits", "per_weight"), [(8, 8.5), (4, 4.5)])
def test_bytes_are_those_of_values_and_scales(bits: int, per_weight: float) -> None:
    q = quantise(sample((4, 8, 64)), bits=bits)
    assert q.nbytes == 4 * 8 * 64 * per_weight / 8 == q.values.nbytes + q.scales.nbytes
    assert stored_bytes("x.weight", (4, 8, 64), bits=bits) == q.nbytes
    assert stored_bytes("x.weight", (4, 8, 60), bits=bits, dtype="float16") == 2 * 4 * 8 * 60


@pytest.mark.parametrize("bits", BITS)
def test_a_tensor_of_several_pieces_is_the_same_as_in_one(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample((7, 64))
    whole = quantise(x, bits=bits)
    monkeypatch.setattr("harness.inference.quant._PASSING", 128)
    pieces = quantise(x, bits=bits)
    assert np.array_equal(whole.values, pieces.values)
    assert np.array_equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [slice(1, 3), np.array([[4, 0], [2, 2]]), 3])
def test_rows_can_be_taken_without_the_rest(bits: int, rows: object) -> None:
    q = quantise(sample(), bits=bits)
    some = q.take(rows)
    assert some.shape == some.dequantised(np).shape
    assert np.array_equal(some.dequantised(np), q.dequantised(np)[rows])


def test_half_precision_rounds_once() -> None:
    q = quantise(sample(), bits=8)
    assert np.array_equal(q.dequantised(np, "float16"), q.dequantised(np).astype(np.float16))
    assert q.dequantised(np, "float16").dtype == np.float16


def test_groups_of_other_sizes_work() -> None:
    for group, bits in itertools.product((8, 64, 128), BITS):
        q = quantise(sample(), bits=bits, group=group)
        assert q.scales.shape == (6, 128 // group)
        assert np.abs(q.dequantised(np) - sample()).max() < 3.5 / MOST[bits]


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((2, 33)), {"bits": 8}, r"\(2, 33\) cannot be cut into groups of 32"),
        (np.zeros(()), {"bits": 8}, r"shape \(\) cannot"),
        (np.zeros((0, 32)), {"bits": 8}, r"shape \(0, 32\) cannot"),
        (np.zeros((2, 32)), {"bits": 5}, "cannot quantise to 5 bits; there are 8, 4"),
        (np.zeros((2, 32)), {"bits": 4, "group": 12}, "group of 12 weights does not fill words of 8"),
        (np.zeros((2, 32)), {"bits": 4, "group": 0}, "group of 0"),
        (np.full((1, 32), np.nan), {"bits": 8}, "not finite"),
        (np.full((1, 32), np.inf), {"bits": 4}, "not finite"),
        (np.full((1, 32), 65504.0 * 8), {"bits": 4}, "beyond 7 times float16's largest"),
    ],
)
def test_what_cannot_be_quantised_is_refused(x: np.ndarray, options: dict[str, int], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        quantise(x.astype(np.float32), **options)


def test_routers_norms_and_odd_rows_stay_as_they_are() -> None:
    assert quantisable("model.layers.0.mlp.down_proj.weight", (64, 128))
    assert quantisable("model.embed_tokens.weight", (64, 128))
    assert quantisable("model.layers.0.mlp.experts.7.gate_proj.weight", (64, 128))
    assert not quantisable("model.layers.0.mlp.gate.weight", (64, 128))
    assert not quantisable("model.layers.0.mlp.shared_expert_gate.weight", (1, 128))
    assert not quantisable("model.layers.0.input_layernorm.weight", (128,))
    assert not quantisable("model.layers.0.mlp.down_proj.weight", (64, 100))
    assert not quantisable("model.layers.0.linear_attn.conv1d.weight", (64, 1, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITS)
def test_cpu_and_gpu_quantise_alike(cpu: Backend, cuda: Backend, bits: int) -> None:
    x = sample((16, 256))
    here, there = quantise(x, bits=bits), quantise(cuda.xp.asarray(x), bits=bits, xp=cuda.xp)
    for ours, theirs in ((here.values, there.values), (here.scales, there.scales)):
        assert np.array_equal(ours, cuda.to_host(theirs))
    assert np.array_equal(here.dequantised(np), cuda.to_host(there.dequantised(cuda.xp)))


def test_experts_that_are_one_tensor_are_not_said_to_have_few_bits(cpu: Backend) -> None:
    spec = SPECS["tiny-gpt-oss"]
    source = synthetic(spec, 1, cpu)
    with pytest.raises(MisuseError, match="tiny-gpt-oss cannot be had in 8 bits: its experts, all in one tensor"):
        synthetic(spec, 1, cpu, bits=8)
    with pytest.raises(MisuseError, match="tiny-gpt-oss cannot be had in 4 bits"):
        load(source, spec, xp=np, free_bytes=1 << 30, bits=4)
