"""Presets: the table of models by memory, what fits, and what is only extrapolated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MisuseError
from harness.inference import ledger, presets
from harness.inference.presets import CLASSES, Role, choice, choose, extrapolated, fit, fits, for_device, needed_bytes
from harness.model import Device

MIB = 1 << 20
ROLES: tuple[Role, ...] = ("primary", "second", "moe")


def card(memory_mib: int, name: str = "card") -> Device:
    return Device(uuid="GPU-1", name=name, kind="cuda", selector="cuda:0", memory_bytes=memory_mib * MIB, sensors={})


@pytest.mark.parametrize(
    ("name", "memory_mib", "primary"),
    [
        ("GTX 1650", 4096, "qwen3-0.6b:fp16"),
        ("RTX 2060", 6144, "llama-3.2-1b:fp16"),
        ("RTX 4060", 8188, "llama-3.2-1b:fp16"),
        ("RTX 3080", 10240, "qwen3-4b:fp16"),
        ("RTX 4070", 12282, "qwen3-4b:fp16"),
        ("T4", 15360, "llama-3.1-8b:int8"),
        ("RTX 4080", 16376, "llama-3.1-8b:int8"),
        ("L4", 23034, "llama-3.1-8b:fp16"),
        ("RTX 4090", 24564, "llama-3.1-8b:fp16"),
        ("RTX 5090", 32607, "llama-3.1-8b:fp16"),
        ("L40S", 46068, "qwen3-14b:fp16"),
        ("A100 80 GB", 81920, "qwen3-32b:fp16"),
        ("H100 80 GB", 81559, "qwen3-32b:fp16"),
        ("RTX PRO 6000", 97887, "qwen3-32b:fp16"),
        ("H200", 143771, "llama-3.3-70b:int8"),
        ("B200", 183359, "llama-3.3-70b:fp16"),
    ],
)
def test_a_card_measures_the_model_of_its_class(name: str, memory_mib: int, primary: str) -> None:
    chosen = for_device(card(memory_mib, name))
    assert chosen.text == primary
    assert not chosen.extrapolated


@pytest.mark.parametrize(("name", "memory_mib", "context"), [("RTX 4090", 24564, 4096), ("RTX 5090", 32607, 32768)])
def test_the_model_of_35_billion_runs_on_one_card_of_24_or_32_gb(name: str, memory_mib: int, context: int) -> None:
    chosen = for_device(card(memory_mib, name), "moe")
    assert (chosen.text, chosen.context) == ("qwen3.5-35b-a3b:int4", context)
    assert ledger.weight_bytes(chosen.spec, chosen.weights) == pytest.approx(19.5e9, rel=2e-3)


@settings(deadline=None)
@given(st.floats(2.4e9, 400e9), st.sampled_from(ROLES))
def test_whatever_is_chosen_fits_with_its_cache_and_workspace(free: float, role: Role) -> None:
    chosen = choose(int(free), role)
    assert fits(chosen, int(free))
    values = chosen.context * chosen.spec.kv_bytes_per_token(chosen.weights.value_bytes)
    assert ledger.weight_bytes(chosen.spec, chosen.weights) + values + 1e9 <= 0.9 * free


@pytest.mark.parametrize("role", ROLES)
def test_no_card_is_given_a_model_in_bits_that_its_experts_do_not_have(role: Role) -> None:
    for gigabytes in range(4, 401, 4):
        chosen = choose(gigabytes * 10**9, role)
        assert chosen.weights.bits is None or not chosen.model.startswith("gpt-oss")


@pytest.mark.parametrize("nominal", CLASSES)
def test_a_rows_models_exist_and_fit_their_class(nominal: int) -> None:
    for role in CLASSES[nominal]:
        text, _, context = CLASSES[nominal][role].partition("@")
        chosen = choice(text, int(context or presets.CONTEXT))
        assert fits(chosen, int(0.97 * nominal * 2**30)), (nominal, text)


def test_more_memory_is_never_given_a_model_that_needs_less() -> None:
    sizes = [needed_bytes(choose(int(gigabytes * 1e9))) for gigabytes in range(4, 200)]
    assert sizes == sorted(sizes)


def test_too_little_memory_gets_a_slice_that_says_so() -> None:
    chosen = choose(int(2.4e9))
    assert chosen.extrapolated
    assert chosen.text == f"qwen3-0.6b/{chosen.spec.layers}:fp16"
    assert chosen.item == f"token of {chosen.spec.layers} of 28 layers"
    assert choice(chosen.text) == chosen
    more = choice(f"qwen3-0.6b/{chosen.spec.layers + 1}:fp16")
    assert not fits(more, int(2.4e9))


def test_a_model_too_big_for_a_card_is_cut_to_what_fits() -> None:
    chosen = fit(choice("llama-3.3-70b:int4"), int(24e9))
    assert chosen.extrapolated
    assert chosen.model == "llama-3.3-70b"
    assert fit(choice("llama-3.1-8b:int8"), int(24e9)) == choice("llama-3.1-8b:int8")
    with pytest.raises(
        MisuseError, match=r"2 layers of llama-3.3-70b:int4 take 3.* GB .* of the 2.00 GB that are free"
    ):
        fit(choice("llama-3.3-70b:int4"), int(2e9))


def test_a_batch_and_a_context_take_their_cache() -> None:
    chosen = choice("llama-3.1-8b:fp16")
    more = needed_bytes(chosen, batch=8, context=1024) - needed_bytes(chosen, batch=1, context=1024)
    assert more == 7 * 1024 * 131_072
    hybrid = choice("qwen3.5-35b-a3b:int4")
    more = needed_bytes(hybrid, batch=2, context=10) - needed_bytes(hybrid, batch=1, context=10)
    assert more == 10 * 20_480 + 30 * 2 * 2**20


def test_an_extrapolated_time_is_a_line_through_two_slices() -> None:
    found = extrapolated((4, 1.0), (8, 1.4), 32)
    assert found.time_s == pytest.approx(3.8)
    assert found.label == "extrapolated"
    assert extrapolated((4, 1.0), (32, 2.0), 32).time_s == 2.0


@pytest.mark.parametrize(
    ("short", "long", "layers"),
    [((4, 1.0), (4, 1.0), 32), ((8, 1.0), (4, 2.0), 32), ((4, 1.0), (8, 0.9), 32), ((4, 1.0), (40, 2.0), 32)],
)
def test_slices_that_lead_nowhere_are_refused(short: Any, long: Any, layers: int) -> None:
    with pytest.raises(MisuseError, match=r"grow in that order|must take longer"):
        extrapolated(short, long, layers)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("llama-3.1-8b", "names no model in a format"),
        ("gpt-5:fp16", "no model 'gpt-5'; there are"),
        ("qwen3-4b:fp3", "no weight format 'fp3'"),
        ("qwen3-4b/37:fp16", "has 36 layers, fewer than the 37"),
        ("qwen3-4b/0:fp16", "names no model in a format"),
        (
            "gpt-oss-120b:int8",
            "gpt-oss-120b cannot be had in 8 bits: its experts, all in one tensor, are not quantised",
        ),
        ("gpt-oss-20b/4:int4", "cannot be had in 4 bits"),
    ],
)
def test_a_spelling_that_names_nothing_is_refused(text: str, what: str) -> None:
    with pytest.raises(MisuseError, match=what):
        choice(text)
