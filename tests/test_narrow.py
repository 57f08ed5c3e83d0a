"""Narrow numbers: they agree with what arithmetic says of their formats, not with another conversion."""

from __future__ import annotations

import numpy as np
import pytest

from harness.device import narrow


def test_bfloat16_keeps_what_it_can_hold_and_rounds_ties_to_even() -> None:
    exact = np.array([1.0, -1.5, 0.0, 2.0**-100, 1 + 2**-7], dtype=np.float32)
    assert np.array_equal(narrow.from_bfloat16(narrow.to_bfloat16(exact)), exact)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, 2 - 2**-9], dtype=np.float32)
    assert narrow.from_bfloat16(narrow.to_bfloat16(ties)).tolist() == [1.0, 1 + 2**-6, 2.0]


def test_tfloat32_keeps_ten_bits() -> None:
    x = np.array([1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -3.0], dtype=np.float32)
    assert narrow.to_tfloat32(x).tolist() == [1 + 2**-10, 1.0, 1.0, -3.0]


def test_every_normal_e4m3_number_is_its_own_rounding() -> None:
    codes = np.array([s | m for s in (0, 0x80) for m in range(0x08, 0x7F)], dtype=np.uint8)
    values = narrow.from_e4m3(codes)
    size = codes & 0x7F
    assert np.array_equal(np.abs(values), (1 + (size & 7) / 8) * 2.0 ** ((size >> 3).astype(int) - 7))
    assert np.array_equal(np.signbit(values), codes >= 0x80)
    assert np.array_equal(narrow.to_e4m3(values), codes)


@pytest.mark.parametrize(("x", "nearest"), [(1.06, 1.0), (1.0625, 1.0), (1.19, 1.25), (1e-9, 2**-6), (-1e9, -448.0)])
def test_e4m3_rounds_to_the_nearest_and_stays_normal(x: float, nearest: float) -> None:
    assert narrow.from_e4m3(narrow.to_e4m3(np.array([x], dtype=np.float32)))[0] == nearest
