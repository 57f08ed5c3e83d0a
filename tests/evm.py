"""A chain of one's own for tests: our contracts through solc, on anvil, both of npm; asked by plain JSON-RPC. No other chain is ever contacted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npmcache
import pytest

from harness.market.offers.keccak import keccak256

if TYPE_CHECKING:
    import httpx

__all__ = ["Chain", "Contract", "RevertedError", "anvil", "compiled", "decode", "kind_of"]

for _needed in ("coincurve", "eth_abi", "httpx"):  # skips the module that imports this one
    pytest.importorskip(_needed, reason="the extras pay and sign are not installed")
from eth_abi.abi import decode, encode  # noqa: E402 - not before that was asked

ROOT = Path(__file__).parent.parent
_COMPILER = Path(__file__).parent / "interop" / "compile.js"
_REVERT = "0x08c379a0"  # Error(string)


class RevertedError(Exception):
    """A contract refused; its own name for why is the message."""


def compiled() -> dict[str, Any]:
    """Return ABI and code of each contract below contracts/; kept in npm's cache for as long as no source changes."""
    modules = npmcache.modules()
    sources = sorted((ROOT / "contracts").rglob("*.sol"))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, _COMPILER])).hexdigest()[:16]
    kept = modules.parent / f"contracts-{key}.json"
    if not kept.exists():
        command = ["node", str(_COMPILER), str(ROOT / "contracts")]
        environment = os.environ | {"NODE_PATH": str(modules)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stderr
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(ended.stdout)
        part.rename(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def kind_of(item: Mapping[str, Any]) -> str:
    """Return a parameter's type as selectors spell it: a struct in brackets."""
    if not str(item["type"]).startswith("tuple"):
        return str(item["type"])
    return "(" + ",".join(map(kind_of, item["components"])) + ")" + str(item["type"])[5:]


class Contract:
    """One contract on a chain: its functions by name, read from the compiler's ABI."""

    def __init__(self, chain: Chain, address: str, abi: list[Any]) -> None:
        self.chain, self.address, self.abi = chain, address.lower(), abi

    def entry(self, name: str, kind: str = "function") -> tuple[str, list[str], list[str]]:
        """Return a function's or event's signature, and the types of what it takes and gives."""
        item = next(one for one in self.abi if one["type"] == kind and one["name"] == name)
        takes = [kind_of(one) for one in item["inputs"]]
        return f"{name}({','.join(takes)})", takes, [kind_of(one) for one in item.get("outputs", [])]

    def data(self, name: str, *values: Any) -> str:
        signature, takes, _ = self.entry(name)
        return "0x" + (keccak256(signature.encode())[:4] + encode(takes, values)).hex()

    def ask(self, name: str, *values: Any, sender: str | None = None) -> Any:
        """Call without a transaction; return its one value, or all of them."""
        found = self.chain.call(self.address, self.data(name, *values), sender)
        got = decode(self.entry(name)[2], found)
        return got[0] if len(got) == 1 else got

    def do(self, name: str, *values: Any, sender: str) -> dict[str, Any]:
        return self.chain.send(self.address, self.data(name, *values), sender)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return all events of a name, oldest first, with their values by name and their place."""
        item = next(one for one in self.abi if one["type"] == "event" and one["name"] == name)
        topic = "0x" + keccak256(self.entry(name, "event")[0].encode()).hex()
        logs = self.chain.rpc("eth_getLogs", {"address": self.address, "fromBlock": "0x0", "topics": [topic]})
        return [_event(log, item["inputs"]) for log in logs]


def _event(log: Mapping[str, Any], inputs: list[Any]) -> dict[str, Any]:
    topics = [bytes.fromhex(topic[2:]) for topic in log["topics"][1:]]
    inside = [one for one in inputs if not one["indexed"]]
    values = iter(decode([one["type"] for one in inside], bytes.fromhex(log["data"][2:])))
    found = {one["name"]: decode([one["type"]], topics.pop(0))[0] if one["indexed"] else next(values) for one in inputs}
    return found | {"block": int(log["blockNumber"], 16), "index": int(log["logIndex"], 16)}


class Chain:
    """anvil, asked over HTTP: it signs for every account by itself."""

    def __init__(self, http: httpx.Client, contracts: Mapping[str, Any]) -> None:
        self._http, self._contracts = http, contracts
        errors = [one for made in contracts.values() for one in made["abi"] if one["type"] == "error"]
        named = {one["name"]: f"{one['name']}({','.join(map(kind_of, one['inputs']))})" for one in errors}
        self._errors = {"0x" + keccak256(text.encode())[:4].hex(): name for name, text in named.items()}
        self.accounts: list[str] = [account.lower() for account in self.rpc("eth_accounts")]

    def rpc(self, method: str, *params: Any) -> Any:
        answer = self._http.post("/", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json()
        if "error" in answer:
            raise RevertedError(self._why(answer["error"]))
        return answer["result"]

    def _why(self, error: Mapping[str, Any]) -> str:
        data = error.get("data")
        if isinstance(data, str) and data.startswith(_REVERT):
            return str(decode(["string"], bytes.fromhex(data[10:]))[0])
        return str(self._errors.get(str(data)[:10], error["message"]))

    def call(self, to: str, data: str, sender: str | None = None) -> bytes:
        asked = {"to": to, "data": data} | ({} if sender is None else {"from": sender})
        return bytes.fromhex(self.rpc("eth_call", asked, "latest")[2:])

    def send(self, to: str | None, data: str, sender: str) -> dict[str, Any]:
        """Send a transaction, and return its receipt; a refusal raises with the contract's reason, and changes nothing."""
        asked = {"from": sender, "data": data} | ({} if to is None else {"to": to})
        sent = self.rpc("eth_sendTransaction", asked)
        until_s = time.monotonic() + 10
        while (found := self.rpc("eth_getTransactionReceipt", sent)) is None:  # a moment passes before it is in a block
            assert time.monotonic() < until_s, f"{sent} was not mined"
            time.sleep(0.002)
        if found["status"] != "0x1":
            self.call(to or "", data, sender)  # says why: a refused transaction left everything as it was
            raise AssertionError(found)
        return dict(found)

    def deploy(self, name: str, *values: Any, sender: str | None = None) -> Contract:
        made = self._contracts[name]
        takes = [kind_of(i) for one in made["abi"] if one["type"] == "constructor" for i in one["inputs"]]
        data = "0x" + made["bytecode"] + encode(takes, values).hex()
        receipt = self.send(None, data, sender or self.accounts[0])
        return Contract(self, receipt["contractAddress"], made["abi"])

    def now_s(self) -> int:
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)  # noqa: FBT003 - without its transactions

    def wait(self, seconds: int) -> None:
        self.rpc("evm_increaseTime", seconds)
        self.rpc("evm_mine")

    def code(self, address: str) -> bytes:
        return bytes.fromhex(self.rpc("eth_getCode", address, "latest")[2:])


@contextmanager
def anvil(*, starts_s: int, chain_id: int = 31337) -> Iterator[Chain]:
    """Run a chain whose clock starts where a test wants it; skip where anvil cannot be had."""
    import httpx

    program = npmcache.modules() / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
    contracts = compiled()
    command = [
        str(program),
        "--port",
        "0",
        "--timestamp",
        str(starts_s),
        "--chain-id",
        str(chain_id),
        "--auto-impersonate",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            said = next((found for line in process.stdout if (found := re.search(r"Listening on (\S+)", line))), None)
            if said is None:
                pytest.skip(f"anvil does not start on this machine (exit {process.wait()})")
            threading.Thread(
                target=process.stdout.read, daemon=True
            ).start()  # it logs every request: a full pipe would stop it
            with httpx.Client(base_url=f"http://{said[1]}", timeout=20, trust_env=False) as http:
                yield Chain(http, contracts)
        finally:
            process.kill()
