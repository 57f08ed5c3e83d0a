"""GGUF: blocks expand to the numbers that were packed, names and rows are the model's, and a hostile header costs nothing."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ForgeryError, HarnessError, MisuseError
from harness.inference import container, ggml
from harness.inference.container import open_container
from harness.inference.gguf import open_gguf, text_of
from harness.inference.weights import load

KIB, MIB = 1 << 10, 1 << 20
F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16 = 0, 1, 2, 3, 8, 14, 30
U8, U32, I32, FLOAT, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10


# --- a writer of files, written from the format's description ------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def packed(kind: int, value: Any) -> bytes:
    """Return a value as the format has it; of an array `value` is (type of its members, members)."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, members = value
        return struct.pack("<IQ", inner, len(members)) + b"".join(packed(inner, m) for m in members)
    return struct.pack({U8: "<B", U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<B", U64: "<Q"}[kind], value)


Meta = Mapping[str, tuple[int, Any]]
Tensors = Mapping[str, tuple[tuple[int, ...], int, bytes]]  # shape as NumPy has it, type, bytes


def gguf(metadata: Meta, tensors: Tensors, *, version: int = 3, alignment: int = 32, **claimed: int) -> bytes:
    """Return a file; `claimed` gives other numbers of tensors and keys than there are."""
    head = b"GGUF" + struct.pack(
        "<IQQ", version, claimed.get("tensors", len(tensors)), claimed.get("keys", len(metadata))
    )
    head += b"".join(
        text(key) + struct.pack("<I", kind) + packed(kind, value) for key, (kind, value) in metadata.items()
    )
    at = 0
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, at)
        data += raw + bytes(-len(raw) % alignment)
        at = len(data)
    return head + bytes(-len(head) % alignment) + data


def f32(array: np.ndarray[Any, Any]) -> tuple[tuple[int, ...], int, bytes]:
    return array.shape, F32, array.astype("<f4").tobytes()


SMALL = gguf(
    {
        "general.architecture": (STRING, "none"),
        "general.alignment": (U32, 32),
        "a.list": (ARRAY, (STRING, ["x", "", "zz"])),
        "a.numbers": (ARRAY, (I32, [1, -2, 3])),
        "a.flag": (BOOL, 1),
    },
    {"one": f32(np.arange(6.0).reshape(2, 3)), "two": ((32,), Q8_0, bytes(34)), "three": f32(np.ones(1))},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# --- blocks -----------------------------------------------------------------------------------------------------------


def expanded(kind: int, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.empty((len(raw), ggml.FORMATS[kind].weights), dtype=np.float32)
    ggml.unpack(ggml.FORMATS[kind], raw, out)
    return out


def half(raw: bytes, at: int = 0) -> float:
    return float(np.frombuffer(raw, "<f2", 1, at)[0])


def by_hand(kind: int, raw: bytes) -> list[float]:
    """Expand one block a weight at a time, in Python's numbers, as the C code of the format reads."""
    byte = raw.__getitem__
    signed = [b - 256 if b > 127 else b for b in raw]
    if kind == Q4_0:
        return [half(raw) * (((byte(2 + i % 16) >> 4 * (i // 16)) & 15) - 8) for i in range(32)]
    if kind == Q4_1:
        return [half(raw) * ((byte(4 + i % 16) >> 4 * (i // 16)) & 15) + half(raw, 2) for i in range(32)]
    if kind == Q8_0:
        return [half(raw) * signed[2 + i] for i in range(32)]
    assert kind == Q6_K
    out = [0.0] * 256
    for n in (0, 1):  # two halves of 128 weights
        for i in range(32):
            low, high = 64 * n, 128 + 32 * n
            quads = (
                (byte(low + i) & 15) | (byte(high + i) & 3) << 4,
                (byte(low + 32 + i) & 15) | (byte(high + i) >> 2 & 3) << 4,
                (byte(low + i) >> 4) | (byte(high + i) >> 4 & 3) << 4,
                (byte(low + 32 + i) >> 4) | (byte(high + i) >> 6 & 3) << 4,
            )
            for k, q in enumerate(quads):
                out[128 * n + 32 * k + i] = half(raw, 208) * signed[192 + 8 * n + 2 * k + i // 16] * (q - 32)
    return out


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0, Q6_K])
def test_blocks_expand_to_the_numbers_that_the_format_says(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form = ggml.FORMATS[kind]
    rng = np.random.default_rng(kind)
    raw = rng.integers(0, 256, size=(7, form.nbytes), dtype=np.uint8)
    for at in {Q4_0: [0], Q4_1: [0, 2], Q8_0: [0], Q6_K: [208]}[kind]:  # scales that are numbers
        raw[:, at : at + 2] = rng.standard_normal(7).astype("<f2").view(np.uint8).reshape(7, 2)
    expected = np.array([by_hand(kind, row.tobytes()) for row in raw])
    assert np.array_equal(expanded(kind, raw), expected.astype(np.float32))
    monkeypatch.setattr(ggml, "_AT_A_TIME", 2 * form.weights)
    assert np.array_equal(expanded(kind, raw), expected.astype(np.float32))


def test_plain_numbers_are_what_they_are() -> None:
    numbers = np.array([1.5, -2.25, 3e4, 0], dtype=np.float32)
    for kind, raw in ((F32, numbers), (F16, numbers.astype("<f2"))):
        assert expanded(kind, raw.view(np.uint8).reshape(4, -1)).ravel().tolist() == raw.tolist()
    bits = np.array([0x3F80, 0xC049], dtype="<u2")
    assert expanded(BF16, bits.view(np.uint8).reshape(2, 2)).ravel().tolist() == [1.0, -3.140625]


# --- the container ----------------------------------------------------------------------------------------------------


def test_metadata_and_tensors_are_read(path: Path) -> None:
    file = open_container(hostile.write(path, SMALL))
    assert file["one"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.part("one", 1).tolist() == [3, 4, 5]
    assert file["two"].tolist() == [0] * 32
    assert file.nbytes == 24 + 34 + 4
    assert file.metadata["a.list"] == ("x", "", "zz")
    assert file.metadata["a.numbers"].tolist() == [1, -2, 3]
    assert file.metadata["a.flag"] is True
    assert len(file) == 3
    assert len(file.metadata) == 5


def test_numbers_of_every_width_are_read(path: Path) -> None:
    values: dict[str, tuple[int, Any]] = {
        "u8": (U8, 200), "u32": (U32, 2**32 - 1), "i32": (I32, -5), "u64": (U64, 2**63 + 1), "f": (FLOAT, 1e-5), "s": (STRING, "é"),
    }  # fmt: skip
    read = open_container(hostile.write(path, gguf(values, {}))).metadata
    assert dict(read) == {key: value for key, (_, value) in values.items()}  # 1e-05, not 9.999999747378752e-06


def test_another_alignment_moves_the_tensors(path: Path) -> None:
    data = gguf({"general.alignment": (U32, 128)}, {"a": f32(np.ones(3)), "b": f32(np.full(2, 7.0))}, alignment=128)
    file = open_container(hostile.write(path, data))
    assert file["b"].tolist() == [7, 7]
    assert file.tensors["b"].first_byte % 128 == 0


def changed(old: bytes, new: bytes) -> bytes:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def head(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def info(name: str = "a", dims: tuple[int, ...] = (1,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def one(info_: bytes, data: int = 64) -> bytes:
    whole = head(1, 0, info_)
    return whole + bytes(-len(whole) % 32 + data)


def value(kind: int, raw: bytes, key: str = "k") -> bytes:
    return head(0, 1, text(key) + struct.pack("<I", kind) + raw)


BIG = 2**64 - 1

HOSTILE: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "the file is empty"),
    "another file": (b"PK\3\4" + bytes(60), r"begins with b'PK\\x03\\x04'; a GGUF file begins with b'GGUF'"),
    "a magic and no more": (b"GGUF", r"\$.version: 4 bytes are claimed at byte 4; 0 are left of the file"),
    "a truncated count": (b"GGUF\3\0\0\0\1", r"\$.tensor_count: 8 bytes are claimed"),
    "a huge number of tensors": (head(BIG, 0, bytes(100)), rf"\$.tensor_count: {BIG} are claimed; there is room for 4 at"),
    "a million tensors": (head(1_000_000, 0, bytes(1000)), "1000000 are claimed; there is room for 42 at most"),
    "more tensors than fit": (head(1000, 0, bytes(100)), "1000 are claimed; there is room for 4 at most"),
    "a longer array than fits": (value(ARRAY, struct.pack("<IQ", 4, 9) + bytes(20)), "9 are claimed; there is room for 5 at"),
    "a huge number of keys": (head(0, BIG, bytes(100)), rf"\$.metadata_kv_count: {BIG} are claimed; there is room for 7"),
    "a key beyond the end": (head(0, 1, struct.pack("<Q", 50) + bytes(5)), "50 bytes are claimed at byte 32; 5 are left"),
    "a huge key": (head(0, 1, struct.pack("<Q", BIG) + bytes(9)), f"a string of {BIG} bytes; here it has at most 65535"),
    "a huge string": (value(STRING, struct.pack("<Q", BIG)), rf"\$.metadata\['k'\]: {BIG} bytes are claimed at byte"),
    "a string just beyond": (value(STRING, struct.pack("<Q", 4) + b"abc"), "4 bytes are claimed at byte .*; 3 are left"),
    "a huge array": (value(ARRAY, struct.pack("<IQ", 4, 2**62) + bytes(8)), f"{2**62} are claimed; there is room for 2"),
    "an array that wraps round": (value(ARRAY, struct.pack("<IQ", 10, 2**61) + bytes(8)), "there is room for 1 at most"),
    "a huge array of strings": (value(ARRAY, struct.pack("<IQ", 8, 2**61) + bytes(8)), "there is room for 1 at most"),
    "an array of arrays": (value(ARRAY, struct.pack("<IQ", 9, 1) + bytes(50)), "an array of type 9; there are numbers"),
    "an unknown type": (value(13, bytes(50)), r"\$.metadata\['k'\]: type 13 is none of the format's, which are 0 to 12"),
    "a key twice": (head(0, 2, 2 * (text("k") + struct.pack("<IB", 0, 1))), r"\$.metadata\[1\]: the name 'k' stands twice"),
    "a key that is no text": (head(0, 1, text(b"\xff") + struct.pack("<IB", 0, 1)), "no UTF-8"),
    "a name twice": (head(2, 0, info() + info()) + bytes(200), r"\$.tensors\[1\].name: the name 'a' stands twice"),
    "a name that is no text": (head(1, 0, text(b"\xff") + bytes(60)), r"\$.tensors\[0\].name: the name b'\\xff' is no UTF-8"),
    "a huge name": (head(1, 0, text("a" * 300)), "a string of 300 bytes; here it has at most 256"),
    "many axes": (one(info(dims=(1,) * 5)), r"n_dimensions: 5 dimensions; there are 1 to 4"),
    "4 billion axes": (head(1, 0, text("a") + struct.pack("<I", 2**32 - 1) + bytes(40)), "4294967295 dimensions"),
    "no axes": (one(info(dims=())), "0 dimensions"),
    "an axis of nothing": (one(info(dims=(4, 0))), r"\$.tensors\['a'\].dimensions: \[4, 0\] of F32: each must be from 1"),
    "a negative axis": (one(info(dims=(2**64 - 4,))), "each must be from 1 to"),
    "a product that wraps round": (one(info(dims=(2**32, 2**32, 1))), rf"of F32 takes {2**66} bytes from byte .* on; the fi"),
    "half a block": (one(info(dims=(16,), kind=Q8_0)), r"\[16\] of Q8_0: each must be from 1 to 2\*\*48, the first a multi"),
    "an offset beyond the end": (one(info(offset=2**63)), rf"offset: is {2**63}; the format puts this tensor at 0"),
    "an overlap": (
        head(2, 0, info("a", (16,)) + info("b", (16,), offset=32)) + bytes(200),
        r"\$.tensors\['b'\].offset: is 32; the format puts this tensor at 64, after the one before it",
    ),
    "a hole": (head(2, 0, info("a") + info("b", offset=64)) + bytes(200), "is 64; the format puts this tensor at 32"),
    "data cut off": (SMALL[:-32], r"\$.tensors\['three'\].dimensions: \[1\] of F32 takes 4 bytes from byte"),
    "no data": (head(1, 0, info(dims=(1 << 40,))), r"\[1099511627776\] of F32 takes 4398046511104 bytes"),
    "an alignment of 0": (changed(struct.pack("<II", 4, 32), struct.pack("<II", 4, 0)), "0 is no power of two"),
    "an alignment of 48": (changed(struct.pack("<II", 4, 32), struct.pack("<II", 4, 48)), r"'general.alignment'\]: 48 is no"),
    "a huge alignment": (changed(struct.pack("<II", 4, 32), struct.pack("<II", 4, 1 << 31)), "2147483648 is no power of"),
    "an alignment that is text": (gguf({"general.alignment": (STRING, "x")}, {}), "'x' is no power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_words_and_without_memory(case: str, path: Path) -> None:
    data, message = HOSTILE[case]
    hostile.write(path, data)

    def refused() -> None:
        with pytest.raises(ForgeryError, match=message) as caught:
            open_container(path)
        assert "(in 'model.gguf')" in str(caught.value)

    assert hostile.peak_bytes(refused) < 256 * KIB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            head(0, 0)[:4] + struct.pack("<IQQ", 1, 0, 0),
            "is GGUF of version 1; versions 2 and 3, little-endian, are read",
        ),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"version 50331648 \(big-endian\)"),
        (one(info(kind=12)), r"tensor 'a' of 'model.gguf' is of type Q4_K; types F32, F16, Q4_0, .* are read"),
        (one(info(kind=99)), "type number 99"),
    ],
)
def test_what_is_right_but_not_read_here_is_named(data: bytes, message: str, path: Path) -> None:
    hostile.write(path, data)
    with pytest.raises(MisuseError, match=message):
        open_container(path)


def test_a_value_that_is_none_of_its_type_is_refused_when_it_is_asked_for(path: Path) -> None:
    read = open_container(hostile.write(path, value(BOOL, b"\2"))).metadata
    with pytest.raises(ForgeryError, match=r"\$.metadata\['k'\]: a truth value is 2; it must be 0 or 1"):
        read["k"]
    read = open_container(hostile.write(path, value(STRING, text(b"\xc3")))).metadata
    with pytest.raises(ForgeryError, match="no UTF-8"):
        read["k"]


def test_megabytes_of_metadata_cost_no_memory_unless_they_are_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strings = struct.pack("<IQ", 8, 40_000) + bytes(8 * 40_000)
    hostile.write(path, value(ARRAY, strings))
    assert hostile.peak_bytes(lambda: open_container(path)) < 64 * KIB
    hostile.write(path, value(ARRAY, struct.pack("<IQ", 0, 4 * MIB) + bytes(4 * MIB)))
    assert hostile.peak_bytes(lambda: open_container(path)) < 64 * KIB
    assert hostile.peak_bytes(lambda: open_container(path).metadata["k"]) < 64 * KIB  # numbers are a view of the file
    monkeypatch.setattr(container, "MAX_STRINGS", 1000)
    with pytest.raises(ForgeryError, match="40000 are claimed; there is room for 1000 at most"):
        open_container(hostile.write(path, value(ARRAY, strings)))
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 2 * MIB)
    with pytest.raises(ForgeryError, match="there is room for"):
        open_container(hostile.write(path, value(ARRAY, struct.pack("<IQ", 0, 4 * MIB) + bytes(4 * MIB))))


def test_a_header_has_an_end_however_long_the_file_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = text("k%d") + struct.pack("<IIQ", ARRAY, 0, 500) + bytes(500)
    data = head(0, 3, b"".join(some.replace(b"%d", b"%d" % i + b"_") for i in range(3)))
    hostile.write(path, data)
    assert len(open_container(path).metadata) == 3
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 1200)
    with pytest.raises(ForgeryError, match=r"500 are claimed; there is room for \d+ at most"):
        open_container(path)
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 520)
    with pytest.raises(
        ForgeryError, match=r"bytes are claimed at byte \d+; \d+ are left of the 520 bytes that a header may"
    ):
        open_container(hostile.write(path, head(0, 1, text("k") + struct.pack("<I", STRING) + text("x" * 600))))


def test_a_tensor_is_expanded_with_little_beside_it(path: Path) -> None:
    count = 1 << 20
    raw = np.random.default_rng(0).integers(0, 255, count // 32 * 20, dtype=np.uint8).tobytes()
    file = open_container(hostile.write(path, gguf({}, {"x": ((1024, 1024), Q4_1, raw)})))
    with np.errstate(all="ignore"):  # scales are any bits
        assert hostile.peak_bytes(lambda: file["x"]) < 4 * count + 8 * MIB


# --- models -----------------------------------------------------------------------------------------------------------

HIDDEN, HEADS, KV, DIM, WIDTH, VOCAB, LAYERS = 32, 4, 2, 8, 48, 11, 2


def meta(architecture: str = "llama", /, **more: tuple[int, Any]) -> dict[str, tuple[int, Any]]:
    keys: dict[str, tuple[int, Any]] = {
        "embedding_length": (U32, HIDDEN),
        "block_count": (U32, LAYERS),
        "attention.head_count": (U32, HEADS),
        "attention.head_count_kv": (U32, KV),
        "attention.layer_norm_rms_epsilon": (FLOAT, 1e-5),
        "rope.freq_base": (FLOAT, 1e4),
        "feed_forward_length": (U32, WIDTH),
        "context_length": (U32, 64),
        **{key.replace("__", "."): v for key, v in more.items()},
    }
    return {"general.architecture": (STRING, architecture), **{f"{architecture}.{k}": v for k, v in keys.items()}}


def random(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def arrays(*, tied: bool = False, experts: int = 0, qk_norm: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Return a model's tensors by the file's names, in the model's own order of rows."""
    out = {"token_embd.weight": random(1, VOCAB, HIDDEN), "output_norm.weight": random(2, HIDDEN)}
    if not tied:
        out["output.weight"] = random(3, VOCAB, HIDDEN)
    for i in range(LAYERS):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * DIM, HIDDEN),
            "attn_k": (KV * DIM, HIDDEN),
            "attn_v": (KV * DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * DIM),
            "ffn_norm": (HIDDEN,),
        }
        if qk_norm:
            shapes |= {"attn_q_norm": (DIM,), "attn_k_norm": (DIM,)}
        many = (experts,) if experts else ()
        end = "_exps" if experts else ""
        shapes |= {f"ffn_{p}{end}": (*many, WIDTH, HIDDEN) for p in ("gate", "up")}
        shapes |= {f"ffn_down{end}": (*many, HIDDEN, WIDTH)} | ({"ffn_gate_inp": (experts, HIDDEN)} if experts else {})
        for j, (name, shape) in enumerate(shapes.items()):
            out[f"blk.{i}.{name}.weight"] = random(100 * i + 10 + j, *shape)
    return out


def as_converted(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Move the rows as the converter for the llama architecture does: row j of a head's half h goes to 2 j + h."""
    for part, heads in ((".attn_q.", HEADS), (".attn_k.", KV)):
        if part in name:
            moved = np.empty_like(array)
            for head_ in range(heads):
                for row in range(DIM):
                    h, j = divmod(row, DIM // 2)
                    moved[head_ * DIM + 2 * j + h] = array[head_ * DIM + row]
            return moved
    return array


def model_file(metadata: Meta, given: Mapping[str, np.ndarray[Any, Any]], *, move: bool = True) -> bytes:
    return gguf(metadata, {n: f32(as_converted(n, a) if move else a) for n, a in given.items()})


def opened(path: Path, metadata: Meta, given: Mapping[str, np.ndarray[Any, Any]], *, move: bool = True) -> Any:
    return open_gguf(hostile.write(path, model_file(metadata, given, move=move)))


def test_a_llama_gets_its_names_its_rows_and_its_shape(path: Path) -> None:
    given = arrays()
    spec, weights, metadata = opened(path, meta() | {"general.name": (STRING, "Tiny")}, given)
    assert (spec.name, spec.hidden, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == ("Tiny", 32, 2, 4, 2, 8)
    assert (spec.ffn_width, spec.vocab, spec.tied, spec.norm_eps, spec.rope.theta) == (48, 11, False, 1e-5, 1e4)
    assert metadata["llama.block_count"] == 2
    expected = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    for ours, theirs in expected.items():
        assert np.array_equal(weights[ours], given[theirs]), ours
    assert dict(weights.shapes) == dict(spec.tensors())
    assert weights.nbytes == 4 * spec.parameters
    assert list(weights.sha256()) == ["model.gguf"]
    assert set(load(weights, spec, xp=np, free_bytes=1 << 30)) == set(weights) == set(spec.tensors())
    assert len(weights) == len(spec.tensors())


def test_a_tied_llama_has_no_head_and_a_name_from_its_file(path: Path) -> None:
    spec, weights, _ = opened(path, meta(), arrays(tied=True))
    assert spec.tied
    assert spec.name == "model"
    assert "lm_head.weight" not in weights


def test_experts_are_parts_of_one_tensor(path: Path) -> None:
    given = arrays(experts=3)
    more: dict[str, tuple[int, Any]] = {"expert_count": (U32, 3), "expert_used_count": (U32, 2)}
    spec, weights, _ = opened(path, meta(**more), given)
    assert spec.experts is not None
    assert (spec.experts.count, spec.experts.top_k, spec.experts.width) == (3, 2, WIDTH)
    at = "model.layers.1.block_sparse_moe."
    assert np.array_equal(weights[f"{at}experts.2.w1.weight"], given["blk.1.ffn_gate_exps.weight"][2])
    assert np.array_equal(weights[f"{at}experts.0.w2.weight"], given["blk.1.ffn_down_exps.weight"][0])
    assert np.array_equal(weights[f"{at}experts.1.w3.weight"], given["blk.1.ffn_up_exps.weight"][1])
    assert np.array_equal(weights[f"{at}gate.weight"], given["blk.1.ffn_gate_inp.weight"])


def test_qwens_rows_are_in_order_already(path: Path) -> None:
    given = arrays(qk_norm=True)
    spec, weights, _ = opened(path, meta("qwen3", attention__key_length=(U32, DIM)), given, move=False)
    assert spec.qk_norm
    assert np.array_equal(weights["model.layers.0.self_attn.q_proj.weight"], given["blk.0.attn_q.weight"])
    assert np.array_equal(weights["model.layers.1.self_attn.k_norm.weight"], given["blk.1.attn_k_norm.weight"])
    more: dict[str, tuple[int, Any]] = {
        "attention__key_length": (U32, DIM),
        "attention__value_length": (U32, DIM),
        "expert_count": (U32, 4),
        "expert_used_count": (U32, 2),
        "expert_feed_forward_length": (U32, WIDTH),
    }
    given = arrays(qk_norm=True, experts=4)
    spec, weights, _ = opened(path, meta("qwen3moe", **more), given, move=False)
    assert spec.experts is not None
    assert spec.experts.renormalise
    at = "model.layers.0.mlp."
    assert np.array_equal(weights[f"{at}experts.3.up_proj.weight"], given["blk.0.ffn_up_exps.weight"][3])
    assert np.array_equal(weights[f"{at}gate.weight"], given["blk.0.ffn_gate_inp.weight"])


def llama3_factors(theta: float, dim: int, factor: float) -> np.ndarray[Any, Any]:
    """The published rule, one frequency at a time."""
    out = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / dim)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def test_llama_3s_scaling_is_known_by_its_table(path: Path) -> None:
    dims: dict[str, tuple[int, Any]] = {
        "embedding_length": (U32, 32),
        "attention__head_count": (U32, 4),
        "rope__freq_base": (FLOAT, 5e5),
    }
    for factor in (8.0, 32.0):
        given = arrays() | {"rope_freqs.weight": llama3_factors(5e5, DIM, factor)}
        spec, weights, _ = opened(path, meta(**dims), given)
        assert (spec.rope.kind, spec.rope.factor, spec.rope.original_length) == ("llama3", factor, 8192)
        assert "rope_freqs.weight" not in weights
    table = llama3_factors(5e5, DIM, 8.0)
    for wrong in (
        table[:-1],
        table[::-1].copy(),
        table * np.float32(1.01),
        np.full(DIM // 2, np.nan, dtype=np.float32),
    ):
        with pytest.raises(MisuseError, match=r"rope_freqs.weight holds \d factors up to .* not Llama 3's"):
            opened(path, meta(**dims), arrays() | {"rope_freqs.weight": wrong})


BAD_MODELS: dict[str, tuple[dict[str, tuple[int, Any]], dict[str, np.ndarray[Any, Any] | None], str]] = {
    "another architecture": (meta("gemma"), {}, "general.architecture is 'gemma'; there are llama, qwen3, qwen3moe"),
    "no architecture": ({}, {}, "general.architecture is None"),
    "a part of several files": (meta() | {"split.count": (U32, 3)}, {}, "split into 3 files; join them"),
    "a key that changes the answer": (meta(logit_scale=(FLOAT, 2.0)), {}, "llama.logit_scale is 2.0, which is not underst"),
    "scaled positions": (meta(rope__scaling__type=(STRING, "linear")), {}, "llama.rope.scaling.type is 'linear'"),
    "a part that is rotated": (meta(rope__dimension_count=(U32, 4)), {}, "rope.dimension_count is 4; only 8"),
    "values of another size": (meta(attention__value_length=(U32, 4)), {}, "attention.value_length is 4; only 8"),
    **{
        f"{key} a layer": (meta() | {key: (ARRAY, (U32, [1, 1]))}, {}, f"{key} is an array of 2; only one value for the whole")
        for key in (
            "split.count",
            *(f"llama.{field}" for field in (
                "attention.head_count", "attention.head_count_kv", "attention.value_length", "block_count", "embedding_length",
                "expert_count", "rope.dimension_count", "rope.scaling.type",
            )),
        )
    },
    "heads that are text": (meta(attention__head_count=(STRING, "4")), {}, "attention.head_count '4'"),
    "no heads": (meta(attention__head_count=(U32, 0)), {}, "attention.head_count 0"),
    "4 billion layers": (meta(block_count=(U32, 2**32 - 1)), {}, "block_count is 4294967295; the file has the tensors of 2"),
    "more layers than there are": (meta(block_count=(U32, 3)), {}, "block_count is 3; the file has the tensors of 2 layers"),
    "no embedding": (meta(), {"token_embd.weight": None}, "there is no token_embd.weight among the file's 20"),
    "an unknown tensor": (meta(), {"blk.0.attn_q.bias": np.ones(32)}, "tensor 'blk.0.attn_q.bias' is none that"),
    "an unknown name": (meta(), {"other.weight": np.ones(32)}, "tensor 'other.weight' is none that"),
    "a missing tensor": (meta(), {"blk.1.ffn_up.weight": None}, "needs a tensor 'model.layers.1.mlp.up_proj.weight'"),
    "a shape that is not the model's": (
        meta(),
        {"blk.1.ffn_up.weight": np.ones((HIDDEN, WIDTH))},
        r"'model.layers.1.mlp.up_proj.weight' has the shape \(32, 48\); model needs \(48, 32\)",
    ),
    "a width that is not the tensors'": (meta(feed_forward_length=(U32, 64)), {}, r"has the shape \(48, 32\); model needs"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_is_not_understood_is_refused(case: str, path: Path) -> None:
    metadata, changes, message = BAD_MODELS[case]
    given = {n: a for n, a in {**arrays(), **changes}.items() if a is not None}
    hostile.write(path, model_file(metadata, given))

    def refused() -> None:
        with pytest.raises(MisuseError, match=message):
            open_gguf(path)

    assert hostile.peak_bytes(refused) < MIB


def test_a_claim_of_many_experts_lists_none(path: Path) -> None:
    """One tensor of half a million experts of one weight each is a small file, and would be half a million names."""
    given = arrays(experts=2)
    more: dict[str, tuple[int, Any]] = {"expert_count": (U32, 2), "expert_used_count": (U32, 2)}
    given["blk.0.ffn_up_exps.weight"] = np.zeros((500_000, 1, 1), dtype=np.float32)
    hostile.write(path, model_file(meta(**more), given))

    def refused() -> None:
        with pytest.raises(MisuseError, match="claims 500000 experts"):
            open_gguf(path)

    assert hostile.peak_bytes(refused) < MIB


MODEL = model_file(meta(), arrays())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_our_error_or_are_read_and_cost_little(path: Path, data: st.DataObject) -> None:
    damaged = data.draw(hostile.damages(SMALL))
    hostile.write(path, damaged)

    def tried() -> None:
        try:
            file = open_container(path)
            for name in file:
                with np.errstate(all="ignore"):
                    assert file[name].shape == file.tensors[name].shape
            dict(file.metadata)
        except HarnessError:
            pass

    assert hostile.peak_bytes(tried) < 64 * KIB + 16 * len(damaged)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_models_raise_our_error_or_are_read_and_cost_little(path: Path, data: st.DataObject) -> None:
    header = MODEL[: open_header_bytes(path)]
    hostile.write(path, data.draw(hostile.damages(header)) + MODEL[len(header) :])

    def tried() -> None:
        try:
            spec, weights, _ = open_gguf(path)
            assert dict(weights.shapes) == dict(spec.tensors())
        except HarnessError:
            pass

    assert hostile.peak_bytes(tried) < MIB


def open_header_bytes(path: Path) -> int:
    """Return where the data of the model begin."""
    return min(t.first_byte for t in open_container(hostile.write(path, MODEL)).tensors.values())


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_is_made_of_the_bytes_that_the_vocabulary_stands_for() -> None:
    vocabulary = ("Hello", "\u0120world", "\u00c3", "\u00a9", "\u010a", "<|end|>", "\u65e5", "!")
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": vocabulary}
    assert text_of([0, 1, 2, 3, 4, 5, 7], metadata) == "Hello world\u00e9\n<|end|>!"
    assert text_of(np.array([2]), metadata) == "\ufffd"  # half a character
    assert text_of([6], metadata) == "\u65e5"  # not of the bytes' alphabet: itself
    for wrong in (-1, 8):
        with pytest.raises(MisuseError, match=f"token {wrong} is none of the vocabulary's, which are 0 to 7"):
            text_of([wrong], metadata)
    with pytest.raises(MisuseError, match="vocabulary is of kind 'llama'"):
        text_of([0], metadata | {"tokenizer.ggml.model": "llama"})
    for tokens in (None, np.arange(9)):
        with pytest.raises(MisuseError, match=r"tokenizer.ggml.tokens is .* must be the vocabulary's texts"):
            text_of([0], metadata | {"tokenizer.ggml.tokens": tokens})
    with pytest.raises(MisuseError, match="kind None"):
        text_of([0], {})
