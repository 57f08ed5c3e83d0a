"""JSON of strangers: what nests too deeply is refused by each reader, however deep Python itself would go."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hostile import safetensors_bytes, with_header

from harness.strangers import decode, loads

DEEP = 400_000  # with it a configuration is as long as one may be
# Readers of whole documents; each must raise an error that a caller acts on. `deep` has brackets within an array, within a field that nobody knows.
READERS = """
import sys
from pathlib import Path
from harness import codec
from harness.errors import HarnessError
from harness.fitting import cells, offers
from harness.inference import checkpoint, client, safetensors
from harness.model import Report
from harness.scoring import market_model, quick

folder = Path(sys.argv[1])
deep = (folder / "deep.json").read_bytes()
readers = {
    "report": lambda: codec.decode(deep, Report),
    "report, fast": lambda: quick.load_fast(deep) or codec.decode(deep, Report),
    "pieces of one": lambda: quick.unspell(deep, Report),
    "market model": lambda: market_model.MarketModel.read(folder / "deep.json"),
    "snapshot": lambda: cells.read_snapshot(folder / "deep.json"),
    "offers": lambda: offers.read_offers(folder / "deep.json", offers.Origin(provider="vast", segment="marketplace", date="2026-11-01")),
    "configuration": lambda: checkpoint.open_checkpoint(folder / "model"),
    "index": lambda: safetensors.open_safetensors(folder / "shards"),
    "tensor": lambda: safetensors.open_safetensors(folder / "deep.safetensors"),
    "event": lambda: client._event(deep, 0.0),
}
sys.setrecursionlimit(1_000_000)
for name, read in readers.items():
    try:
        read()
    except HarnessError as err:
        print(name, type(err).__name__, str(err).replace(str(folder), "")[:200], sep=": ")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deep = b'{"unknown":[' + b"[" * DEEP + b"]" * DEEP + b"]}"
    (tmp_path / "deep.json").write_bytes(deep)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(deep)
    (tmp_path / "model" / "model.safetensors").write_bytes(safetensors_bytes())
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "model.safetensors.index.json").write_bytes(deep)
    (tmp_path / "deep.safetensors").write_bytes(with_header(b'{"a":' + deep + b"}"))
    return tmp_path


def in_a_child(code: str, *args: object) -> list[str]:
    """Return the lines that a program writes; where the stack overflows, it ends without them."""
    ended = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_brackets_of_a_stranger_are_counted_before_anything_recurses() -> None:
    code = (
        "import sys; sys.setrecursionlimit(1_000_000); from harness.strangers import loads\n"
        "for text in (b'[' * 1_000_000, '{\"a\":' * 1_000_000):\n"
        "    try: loads(text)\n"
        "    except ValueError as err: print(err)"
    )
    assert in_a_child(code) == ["nested deeper than 100 levels"] * 2


def test_every_reader_of_a_document_refuses_one_that_would_end_the_process(folder: Path) -> None:
    told = in_a_child(READERS, folder)
    assert len(told) == 10
    assert [line for line in told if "nested deeper than" not in line] == [
        "tensor: ForgeryError: $['a']: expected an object of the format at byte 13, found b'{\"unknown\":[[[[[[[[[[[[[' (in 'deep.safetensors')"
    ]


def test_what_nests_too_deeply_is_malformed_at_every_limit_on_recursion() -> None:
    deep = b'{"unknown":' + b"[" * 2000 + b"]" * 2000 + b',"a":1}'
    for limit in (1000, 6000):
        sys.setrecursionlimit(limit)
        with pytest.raises(msgspec.DecodeError, match="nested deeper than 100 levels"):
            decode(deep, Known)
    assert decode(b'{"a":1,"unknown":["' + b"[" * 200 + b'"]}', Known) == Known(a=1)


class Known(msgspec.Struct):
    a: int


def test_what_is_within_a_strangers_strings_is_no_bracket() -> None:
    deep = "[" * 100 + json.dumps('"\\' + "[" * 1000) + "]" * 100
    assert loads(deep) == json.loads(deep)
    assert loads(b'{"a": 1.5}', parse_float=Decimal) == {"a": Decimal("1.5")}
    for text in ("[" * 101 + "]" * 101, '"\\', '"' + '\\"' * 100_000, b"\xff", "{"):
        with pytest.raises(ValueError, match=r"."):
            loads(text)
