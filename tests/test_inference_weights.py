"""Safetensors: what is right is read exactly, what is wrong is refused before it costs memory, and nothing leads out of a folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.inference import safetensors
from harness.inference.checkpoint import open_checkpoint, text_name
from harness.inference.mapped import MAX_TENSORS, from_bfloat16
from harness.inference.safetensors import MAX_HEADER_BYTES, open_safetensors
from harness.inference.specs import SPECS, Experts
from harness.inference.weights import check_shapes, load, require_room

KIB, MIB = 1 << 10, 1 << 20
TINY = SPECS["tiny-llama"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header(**tensors: object) -> bytes:
    return json.dumps(tensors).encode()


def folder(at: Path, weight_map: object, **files: bytes) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (at / f"{name}.safetensors").write_bytes(data)
    (at / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"x": [1, {}]}, "weight_map": weight_map}))
    return at


ONE = hostile.safetensors_bytes({"a": ("F32", np.arange(3, dtype=np.float32))})
TWO = hostile.safetensors_bytes({"b": ("F32", np.arange(5, dtype=np.float32))})


# --- what is right ----------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(path: Path) -> None:
    read = open_safetensors(hostile.write(path, hostile.safetensors_bytes(notes={"format": 'p"t\\', "": "é"})))
    assert set(read) == set(hostile.ARRAYS)
    assert read.nbytes == sum(a.nbytes for _, a in hostile.ARRAYS.values())
    for name, (dtype, array) in hostile.ARRAYS.items():
        assert read.shapes[name] == array.shape == read[name].shape
        assert read.stored[name].dtype == dtype
        assert np.array_equal(read[name], from_bfloat16(array) if dtype == "BF16" else array)


def test_every_bfloat16_becomes_the_float32_of_the_same_bits(path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    read = open_safetensors(hostile.write(path, hostile.safetensors_bytes({"x": ("BF16", every)})))["x"]
    assert read.dtype == np.float32
    bits = read.view(np.uint32)
    assert np.array_equal(bits >> 16, every)
    assert not (bits & 0xFFFF).any()
    assert read[0x3F80] == 1
    assert read[0xC049] == -3.140625
    assert np.isinf(read[0x7F80])


def test_numbers_that_lie_askew_are_read_all_the_same(path: Path) -> None:
    text = header(a=entry("U8", [1], [0, 1]), b=entry("F64", [2], [1, 17]))
    read = open_safetensors(hostile.write(path, hostile.with_header(text, b"\x01" + np.array([1.5, -2]).tobytes())))
    assert read["b"].tolist() == [1.5, -2]
    assert read["b"].flags.aligned


def test_a_boolean_is_read_and_a_type_without_numbers_is_named(path: Path) -> None:
    text = header(a=entry("BOOL", [3], [0, 3]), b=entry("F8_E4M3", [1], [3, 4]))
    read = open_safetensors(hostile.write(path, hostile.with_header(text, b"\x00\x01\x02\x7f")))
    assert read["a"].tolist() == [False, True, True]
    assert read.shapes["b"] == (1,)
    with pytest.raises(MisuseError, match=r"'b' of 'model.safetensors' is F8_E4M3, which cannot be read.*BF16"):
        read["b"]
    with pytest.raises(KeyError):
        read["c"]


def test_floats_are_views_of_the_file_and_cannot_be_written(path: Path) -> None:
    array = np.zeros(1 << 20, dtype=np.float32)
    read = open_safetensors(hostile.write(path, hostile.safetensors_bytes({"x": ("F32", array)})))
    assert hostile.peak_bytes(lambda: read["x"]) < 64 * KIB
    assert not read["x"].flags.writeable


def test_the_digest_is_that_of_the_file(path: Path) -> None:
    hostile.write(path, ONE)
    assert open_safetensors(path).sha256() == {"model.safetensors": hashlib.sha256(ONE).hexdigest()}


def test_a_folder_is_read_through_its_index(tmp_path: Path) -> None:
    read = open_safetensors(folder(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}, one=ONE, two=TWO))
    assert read["a"].tolist() == [0, 1, 2]
    assert read["b"].tolist() == [0, 1, 2, 3, 4]
    assert set(read.sha256()) == {"one.safetensors", "two.safetensors"}
    assert open_safetensors(folder(tmp_path / "x", {"a": "one.safetensors"}, one=ONE)).shapes == {"a": (3,)}


def test_a_folder_of_one_file_needs_no_index(path: Path) -> None:
    hostile.write(path, ONE)
    assert list(open_safetensors(path.parent)) == ["a"]


def test_the_hub_cache_with_its_links_is_read(tmp_path: Path) -> None:
    """`snapshots/<revision>/name` is a link to `blobs/<digest>` there."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_bytes(ONE)
    snapshot = folder(tmp_path / "snapshots" / "abc", {"a": "one.safetensors"})
    (snapshot / "one.safetensors").symlink_to("../../blobs/0123")
    read = open_safetensors(snapshot)
    assert read["a"].tolist() == [0, 1, 2]
    assert set(read.sha256()) == {"one.safetensors"}


# --- what is wrong ----------------------------------------------------------------------------------------------------

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

HOSTILE: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "the file is empty"),
    "no length": (b"\x01\x00", "has 2 bytes; the length of the header alone has 8"),
    "a truncated header": (ONE[:40], r"the header claims \d+ bytes; there is room for 32 at most"),
    "truncated data": (ONE[:-1], r"\$\['a'\].data_offsets: \[0, 12\] lies outside the file's 11 bytes of data"),
    "a huge length": (hostile.with_header(b"{}", length=2**63), "claims 9223372036854775808 bytes; there is room for 2"),
    "the largest length": (hostile.with_header(b"{}", length=2**64 - 1), "there is room for 2 at most"),
    "no header": (hostile.with_header(b""), r"expected '\{' at byte 8, found b''"),
    "no object": (hostile.with_header(b"[1, 2]"), r"expected '\{' at byte 8, found b'\[1, 2\]'"),
    "no end": (hostile.with_header(b'{"a": '), r"\$\['a'\]: expected an object of the format at byte 14"),
    "something after": (hostile.with_header(b"{} x"), "expected nothing more at byte 11, found b'x'"),
    "trailing bytes": (ONE + b"\0", "1 bytes after the last tensor belong to none"),
    "nesting": (hostile.with_header(DEEP), "expected an object of the format"),
    "nesting in the notes": (hostile.with_header(b'{"__metadata__":' + DEEP + b"}"), "expected an object of the format"),
    "overlap": (
        hostile.with_header(header(a=entry(), b=entry(offsets=[4, 12])), bytes(12)),
        r"\$\['b'\].data_offsets: begins at 4, which overlaps what comes before; 8 is where the last one ends",
    ),
    "the same bytes twice": (hostile.with_header(header(a=entry(), b=entry()), bytes(8)), "overlaps what comes before"),
    "a hole": (hostile.with_header(header(a=entry(offsets=[4, 12])), bytes(12)), "begins at 4, which leaves a hole"),
    "an end before its beginning": (hostile.with_header(header(a=entry(offsets=[8, 0])), bytes(8)), "ends before it beg"),
    "offsets beyond the end": (
        hostile.with_header(header(a=entry(offsets=[2**62, 2**62 + 8])), bytes(8)),
        "lies outside the file's 8 bytes of data",
    ),
    "a negative offset": (hostile.with_header(header(a=entry(offsets=[-8, 0])), bytes(8)), r"Expected `int` >= 0.*\[0\]"),
    "a negative size": (hostile.with_header(header(a=entry(shape=[-2])), bytes(8)), "Expected `int` >= 0"),
    "two negative sizes": (hostile.with_header(header(a=entry(shape=[-1, -2])), bytes(8)), "Expected `int` >= 0"),
    "a product that wraps round at 64 bits": (
        hostile.with_header(header(a=entry(shape=[2**33, 2**31, 2])), bytes(8)),
        r"\$\['a'\].shape: \[8589934592, 2147483648, 2\] of F32 takes 1.47\d+e\+20 bytes, its data_offsets hold 8",
    ),
    "a product that wraps round to the right size": (
        hostile.with_header(header(a=entry("U8", [2**62 + 2, 4])), bytes(8)),
        r"takes 1\.8446\d*e\+19 bytes, its data_offsets hold 8",
    ),
    "a product that wraps round to nothing": (
        hostile.with_header(header(a=entry("U8", [2**32, 2**32], [0, 0]))),
        r"takes 1\.8446\d*e\+19 bytes, its data_offsets hold 0",
    ),
    "a size beyond 64 bits": (hostile.with_header(header(a=entry(shape=[2**64])), bytes(8)), r"\$\['a'\]: .*[Ii]nt"),
    "a size with a fraction": (hostile.with_header(header(a=entry(shape=[0.5])), bytes(8)), "Expected `int`, got `float`"),
    "a size that is no number": (hostile.with_header(header(a=entry(shape=["2"])), bytes(8)), "Expected `int`, got `str`"),
    "no shape": (hostile.with_header(b'{"a":{"dtype":"F32","data_offsets":[0,0]}}'), "missing required field `shape`"),
    "an unknown key": (hostile.with_header(header(a={**entry(), "x": 1}), bytes(8)), "unknown field `x`"),
    "many axes": (hostile.with_header(header(a=entry(shape=[1] * 9 + [2])), bytes(8)), "length <= 8"),
    "an unknown type": (hostile.with_header(header(a=entry("F33")), bytes(8)), r"\$\['a'\].dtype: 'F33' is no type of"),
    "a shape that disagrees": (hostile.with_header(header(a=entry(shape=[3])), bytes(8)), r"\[3\] of F32 takes 12 bytes"),
    "half a byte": (hostile.with_header(header(a=entry("F4", [1], [0, 1])), b"\0"), r"\[1\] of F4 takes 0.5 bytes"),
    "a name twice": (
        hostile.with_header(b'{"a":' + header()[:-1] + b'"dtype":"U8","shape":[],"data_offsets":[0,1]},'
                            b'"\\u0061":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}', b"12"),
        r"\$\['a'\]: this name stands twice",
    ),
    "notes twice": (hostile.with_header(b'{"__metadata__":{},"__metadata__":{}}'), "this name stands twice"),
    "a key twice": (
        hostile.with_header(b'{"a":{"dtype":"U8","dtype":"I8","shape":[],"data_offsets":[0,1]}}', b"1"),
        "a key stands twice",
    ),
    "notes that are no strings": (hostile.with_header(b'{"__metadata__":{"a":1}}'), "expected an object of the format"),
    "no quotes": (hostile.with_header(b"{a:1}"), 'expected a name in quotes and ":" at byte 9'),
    "no comma": (hostile.with_header(b'{"__metadata__":{} "a"'), r"\$\['__metadata__'\]: expected ',' or '\}'"),
    "a broken escape": (hostile.with_header(b'{"\\q":{}}'), "is no string"),
    "half a character": (hostile.with_header(b'{"\xc3":{}}'), "is no string"),
    "half a pair": (hostile.with_header(b'{"\\ud800":{}}'), "is no string"),
    "a long name": (hostile.with_header(b'{"' + b"a" * 2000 + b'":{}}'), "a name of 2000 bytes; a tensor's has at most 1022"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_words_and_without_memory(case: str, path: Path) -> None:
    data, message = HOSTILE[case]
    hostile.write(path, data)

    def refused() -> None:
        with pytest.raises(ForgeryError, match=message) as caught:
            open_safetensors(path)
        assert "(in 'model.safetensors')" in str(caught.value)
        assert caught.value.path.startswith("$")

    assert hostile.peak_bytes(refused) < 256 * KIB


def test_a_header_beyond_the_limit_is_refused_unread(path: Path) -> None:
    """Tens of megabytes of brackets: a parser that builds what it reads would take a gigabyte."""
    size = MAX_HEADER_BYTES + 1
    with path.open("wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(8 + size)
    with pytest.raises(ForgeryError, match=f"claims {size} bytes; there is room for {MAX_HEADER_BYTES} at most"):
        open_safetensors(path)


BOMBS = {
    "brackets": b'{"a":{"dtype":"F32","shape":' + b"[]," * (4 * MIB // 3) + b"[]}}",
    "notes of brackets": b'{"__metadata__":' + b"[]," * (4 * MIB // 3) + b"[]}",
    "notes": b'{"__metadata__":{' + b'"":"",' * (4 * MIB // 6) + b'"":""}}',
    "numbers": b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[' + b"0," * 2 * MIB + b"0]}}",
    "a name": b'{"' + b"x" * 4 * MIB + b'":{}}',
    "blanks": b" " * 4 * MIB,
    "names of nothing": b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}",
    "backslashes": b'{"' + b"\\\\" * 2 * MIB + b'":{}}',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_megabytes_of_nothing_cost_no_memory(bomb: str, path: Path) -> None:
    hostile.write(path, hostile.with_header(BOMBS[bomb]))

    def tried() -> None:
        if bomb == "notes":  # they are in order, and nobody asks for them
            assert len(open_safetensors(path)) == 0
        else:
            with pytest.raises(ForgeryError):
                open_safetensors(path)

    assert hostile.peak_bytes(tried) < 256 * KIB


def test_a_million_tensors_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million do not even fit the header; and of as many as fit, no more are read than any model has."""
    smallest = len(b'"0":{"dtype":"U8","shape":[],"data_offsets":[0,0]},')
    assert MAX_TENSORS < 1_000_000
    assert 1_000_000 * smallest > MAX_HEADER_BYTES
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 1000)
    many = header(**{str(i): entry("U8", [0], [0, 0]) for i in range(5_000)})
    hostile.write(path, hostile.with_header(many))

    def refused() -> None:
        with pytest.raises(ForgeryError, match="more than 1000 tensors"):
            open_safetensors(path)

    assert hostile.peak_bytes(refused) < MIB


def test_the_records_of_a_header_take_a_bounded_multiple_of_it(path: Path) -> None:
    """The worst that is still in order: as many tensors as fit, of shortest names and no bytes."""
    many = header(**{f"{i:x}": entry("U8", [0], [0, 0]) for i in range(4_000)})
    hostile.write(path, hostile.with_header(many))
    assert hostile.peak_bytes(lambda: open_safetensors(path)) < 12 * len(many)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_our_error_or_are_read_and_cost_little(path: Path, data: st.DataObject) -> None:
    damaged = data.draw(hostile.damages(hostile.safetensors_bytes(notes={"format": "pt"})))
    hostile.write(path, damaged)

    def tried() -> None:
        try:
            read = open_safetensors(path)
            for name, shape in read.shapes.items():
                assert read[name].shape == shape
        except HarnessError:
            pass

    assert hostile.peak_bytes(tried) < 64 * KIB + 16 * len(damaged)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", ""]),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "BF16", "F4", "x", 1]),
                "shape": st.lists(st.integers(-2, 4) | st.sampled_from([2**31, 2**63 - 1, 2**64, 10**40]), max_size=5)
                | st.none(),
                "data_offsets": st.lists(st.integers(-1, 40) | st.sampled_from([2**63, 2**64]), max_size=3),
                "more": st.none(),
            },
        )
        | st.recursive(
            st.none() | st.booleans() | st.text(max_size=3), lambda x: st.lists(x, max_size=3), max_leaves=5
        ),
        max_size=3,
    ),
    size=st.integers(0, 40),
)
def test_headers_of_any_fields_raise_our_error_or_are_read(path: Path, fields: dict[str, Any], size: int) -> None:
    hostile.write(path, hostile.with_header(json.dumps(fields).encode(), bytes(size)))

    def tried() -> None:
        try:
            read = open_safetensors(path)
            assert read.nbytes == size
            for name, shape in read.shapes.items():
                assert read.stored[name].dtype == "F4" or read[name].shape == shape
        except HarnessError:
            pass

    assert hostile.peak_bytes(tried) < 128 * KIB


# --- folders that lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/hostname",
        "a/../../x",
        "sub/one.safetensors",
        "..",
        ".",
        "",
        "a\0b",
        "..\\x",
        "x" * 300,
    ],
)
def test_an_index_leads_to_no_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(ONE)
    where = folder(tmp_path / "model", {"a": name}, one=ONE)
    with pytest.raises(ForgeryError, match="must be the plain name of a file in the folder"):
        open_safetensors(where)


@pytest.mark.parametrize("target", ["../secret.safetensors", "absolute", "../../blobs/x"])
def test_an_index_leads_to_no_link_out(target: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(ONE)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(ONE)
    where = folder(tmp_path / "a" / "model", {"a": "one.safetensors"})
    (where.parent / "secret.safetensors").write_bytes(ONE)
    (where / "one.safetensors").symlink_to(secret if target == "absolute" else target)
    with pytest.raises(ForgeryError, match="leads out of the folder"):
        open_safetensors(where)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_the_files_that_are_looked_for_may_be_no_links_out_either(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(ONE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).symlink_to("../outside")
    with pytest.raises(ForgeryError, match="leads out of the folder"):
        open_safetensors(tmp_path / "model")


def test_a_link_within_the_folder_is_followed_and_one_in_a_circle_is_not(tmp_path: Path) -> None:
    where = folder(tmp_path, {"a": "one.safetensors"}, real=ONE)
    (where / "one.safetensors").symlink_to("real.safetensors")
    assert open_safetensors(where)["a"].tolist() == [0, 1, 2]
    (where / "one.safetensors").unlink()
    (where / "one.safetensors").symlink_to("one.safetensors")
    with pytest.raises(HarnessError, match=r"one\.safetensors"):
        open_safetensors(where)


INDEXES = {
    "no map": (b"{}", "missing required field `weight_map`"),
    "no JSON": (b"nonsense", "no index of the form"),
    "a list": (b'{"weight_map": []}', r"expected '\{'"),
    "a number": (b'{"weight_map": {"a": 1}}', "expected a file's name in quotes"),
    "a name twice": (b'{"weight_map": {"a": "x", "a": "y"}}', r"\$.weight_map\['a'\]: this name stands twice"),
    "nesting": (b'{"weight_map": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no index of the form"),
    "an empty file": (b"", "the file is empty"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_hostile_index_is_refused(case: str, tmp_path: Path) -> None:
    data, message = INDEXES[case]
    (tmp_path / "model.safetensors.index.json").write_bytes(data)

    def refused() -> None:
        with pytest.raises(ForgeryError, match=message):
            open_safetensors(tmp_path)

    assert hostile.peak_bytes(refused) < 512 * KIB


def test_an_index_of_too_many_tensors_or_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 10)
    where = folder(tmp_path, {str(i): "one.safetensors" for i in range(11)}, one=ONE)
    with pytest.raises(ForgeryError, match="more than 10 tensors"):
        open_safetensors(where)
    monkeypatch.setattr(safetensors, "MAX_SHARDS", 3)
    with pytest.raises(ForgeryError, match="4 files; at most 3 are opened"):
        open_safetensors(folder(tmp_path, {str(i): f"{i}" for i in range(4)}))
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 20)
    with pytest.raises(ForgeryError, match=r"an index of .* bytes; at most 20 are read"):
        open_safetensors(where)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    where = folder(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"}, one=ONE)
    with pytest.raises(ForgeryError, match=r"\$.weight_map\['b'\]: 'one.safetensors' holds no such tensor"):
        open_safetensors(where)
    with pytest.raises(MisuseError, match="No such file"):
        open_safetensors(folder(tmp_path, {"a": "three.safetensors"}))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"cannot read weights from .*: No such file or directory"):
        open_safetensors(tmp_path / "nothing")
    with pytest.raises(MisuseError, match=r"holds neither 'model.safetensors' nor"):
        open_safetensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MisuseError, match="it is no regular file"):
        open_safetensors(tmp_path / "pipe")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MisuseError, match="it is no regular file"):
        open_safetensors(tmp_path)


# --- into a model -----------------------------------------------------------------------------------------------------


class Numbers:
    """A model's tensors that are made when they are asked for, and counted."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.read: list[str] = []

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        self.read.append(name)
        return np.full(self.shapes[name], 0.5, dtype=np.float32)


def tiny(**changes: tuple[int, ...] | None) -> Numbers:
    shapes = {**TINY.tensors(), **changes}
    return Numbers({name: shape for name, shape in shapes.items() if shape is not None})


def test_a_model_is_loaded_from_its_file(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {n: ("F32", rng.standard_normal(s).astype(np.float32)) for n, s in TINY.tensors().items()}
    source = open_safetensors(hostile.write(path, hostile.safetensors_bytes(arrays)))
    for dtype in ("float32", "float16"):
        loaded = load(source, TINY, xp=np, free_bytes=1 << 30, dtype=dtype)
        assert list(loaded) == list(TINY.tensors())
        assert all(np.array_equal(loaded[n], a.astype(dtype)) for n, (_, a) in arrays.items())
        assert {a.dtype.name for a in loaded.values()} == {dtype}
    packed = load(source, TINY, xp=np, free_bytes=1 << 30, bits=4)
    assert packed["lm_head.weight"].bits == 4
    assert packed["model.norm.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (tiny(**{"model.norm.weight": (65,)}), r"'model.norm.weight' has the shape \(65,\); tiny-llama needs \(64,\)"),
        (
            tiny(**{"lm_head.weight": (64, 96)}),
            r"'lm_head.weight' has the shape \(64, 96\); tiny-llama needs \(96, 64\)",
        ),
        (
            tiny(**{"lm_head.weight": None, "language_model.lm_head.weight": (96, 64)}),
            r"needs a tensor 'lm_head.weight' of shape \(96, 64\).*near it: language_model.lm_head.weight",
        ),
        (
            tiny(**{"model.layers.3.x": (2, 2)}),
            r"1 tensors are none of tiny-llama's, such as 'model.layers.3.x' of shape",
        ),
    ],
)
def test_what_is_not_the_models_is_refused_before_anything_is_read(source: Numbers, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        load(source, TINY, xp=np, free_bytes=1 << 40)
    assert source.read == []


def test_copies_of_what_a_model_has_anyway_are_passed_over() -> None:
    tied = SPECS["tiny-qwen3"]
    shapes = {**tied.tensors(), "lm_head.weight": (96, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}
    check_shapes(tied, shapes)


def test_a_model_too_big_for_memory_is_refused_before_anything_is_read() -> None:
    spec = SPECS["llama-3.3-70b"]
    source = Numbers(dict(spec.tensors()))

    def refused() -> None:
        with pytest.raises(FailureError, match=r"llama-3.3-70b needs 28\d.\d\d GB and a tenth more, 24.00 GB are free"):
            load(source, spec, xp=np, free_bytes=24_000_000_000)

    assert hostile.peak_bytes(refused) < MIB
    assert source.read == []


def test_memory_is_counted_in_the_form_that_is_loaded() -> None:
    """Room for 4 bits a weight is not room for 16."""
    needed = {}
    for bits, dtype in ((4, "float16"), (8, "float16"), (None, "float16"), (None, "float32")):
        free = 1
        while True:
            try:
                load(tiny(), TINY, xp=np, free_bytes=free, bits=bits, dtype=dtype)
                break
            except FailureError:
                free = free * 21 // 20 + 1
        needed[bits, dtype] = free
    assert list(needed.values()) == sorted(set(needed.values()))
    weights = TINY.parameters
    assert needed[None, "float32"] == pytest.approx(1.1 * 4 * (weights + 160 * 64), rel=0.06)
    require_room(100, 110, "x")
    with pytest.raises(FailureError):
        require_room(100, 109, "x")


def test_a_spec_of_absurd_size_lists_no_tensors() -> None:
    spec = replace(TINY, ffn_width=None, experts=Experts(count=1 << 24, top_k=1, width=1))

    def refused() -> None:
        with pytest.raises(MisuseError, match="claims 3 layers of 16777216 experts"):
            check_shapes(spec, {})

    assert hostile.peak_bytes(refused) < 64 * KIB


def test_a_number_beyond_float16_is_named_not_made_infinite() -> None:
    class Loud(Numbers):
        def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
            return super().__getitem__(name) * np.float32(2e5)

    with pytest.raises(FailureError, match=r"'model.embed_tokens.weight' has values up to 1e\+05, beyond float16"):
        load(Loud(dict(TINY.tensors())), TINY, xp=np, free_bytes=1 << 30, dtype="float16")


# --- as it is published -----------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "tie_word_embeddings": False,
}


def checkpoint(at: Path, config: object) -> Path:
    arrays = {n: ("BF16", np.full(s, 0x3F80, dtype=np.uint16)) for n, s in TINY.tensors().items()}
    hostile.write(at / "model.safetensors", hostile.safetensors_bytes(arrays))
    (at / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    return at


def test_a_published_folder_is_a_model(tmp_path: Path) -> None:
    spec, weights = open_checkpoint(checkpoint(tmp_path, CONFIG))
    assert spec == replace(TINY, name=tmp_path.name)
    loaded = load(weights, spec, xp=np, free_bytes=1 << 30)
    assert all((array == 1).all() for array in loaded.values())


def test_of_a_model_that_also_sees_the_text_model_is_taken(tmp_path: Path) -> None:
    """Qwen3.5's published files: names with another prefix, and an eye and a predictor of several tokens beside it."""
    spec = SPECS["tiny-qwen3.5"]
    names = {n: n.replace("model.", "model.language_model.", 1) for n in spec.tensors()}
    arrays = {names[n]: ("BF16", np.full(s, 0x3F80, dtype=np.uint16)) for n, s in spec.tensors().items()}
    others = {n: ("BF16", np.zeros(2, dtype=np.uint16)) for n in ("model.visual.patch_embed.weight", "mtp.norm.weight")}
    hostile.write(tmp_path / "model.safetensors", hostile.safetensors_bytes({**arrays, **others}))
    source = open_safetensors(tmp_path).renamed(
        lambda n: None if "language" not in n and n not in spec.tensors() else n
    )
    assert len(source) == len(arrays)
    with pytest.raises(MisuseError, match="two tensors would be called 'x'"):
        source.renamed(lambda _: "x")
    check_shapes(spec, open_safetensors(tmp_path).renamed(text_name).shapes)
    with pytest.raises(MisuseError, match="needs a tensor"):
        check_shapes(spec, open_safetensors(tmp_path).shapes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {**CONFIG, "num_hidden_layers": 2**24}}, "claims num_hidden_layers of 16777216"),
        ({"text_config": {"text_config": CONFIG}}, r"\$\.text_config\.text_config: a text model within a text model"),
        ({**CONFIG, "num_hidden_layers": 2**24}, "claims num_hidden_layers of 16777216; the folder holds 30 tensors"),
        ({**CONFIG, "hidden_size": 32}, r"'model.embed_tokens.weight' has the shape \(96, 64\); .* needs \(96, 32\)"),
        ({**CONFIG, "model_type": "other"}, "other"),
        (b"[]", r"\$: no configuration: Expected `object`, got `array`"),
        (b'{"a": ' + b"[" * 100_000, "no configuration"),
        (b'{"\xff": 1}', "no configuration"),
        (b" " * ((1 << 20) + 1), "a configuration of 1048577 bytes; at most 1048576 are read"),
    ],
)
def test_a_folder_whose_configuration_is_wrong_is_refused(config: object, message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, config)

    def refused() -> None:
        with pytest.raises(HarnessError, match=message):
            open_checkpoint(tmp_path)

    assert hostile.peak_bytes(refused) < 2 * MIB


def test_a_folder_without_a_configuration_and_a_file_that_is_no_gguf_are_refused(tmp_path: Path) -> None:
    hostile.write(tmp_path / "model.safetensors", ONE)
    with pytest.raises(MisuseError, match=r"config\.json.*No such file"):
        open_checkpoint(tmp_path)
    with pytest.raises(ForgeryError, match="a GGUF file begins with"):
        open_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ForgeryError, match="leads out of the folder"):
        open_checkpoint(tmp_path)
