"""Two hosts, as network namespaces that this file makes and removes: a fleet over a network, and what a cut in it costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_plugin import install

NETWORK = "10.77.0"
HEAD = f"{NETWORK}.1:6379"
TESTS = str(Path(__file__).parent)
TUNED = {  # a node that is cut off is declared dead after about 12 s
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
PLUGIN = '''
import os, pathlib, time
from harness.registry import Case, Work, benchmark

@benchmark(version=1, how=("slow 1", "slow 2", "slow 3"))
def nap(backend, seed, *, how):
    """Say when it begins, and sleep: the first two in one process for nine seconds, the third alone for five more."""
    with (pathlib.Path(os.environ["XDG_STATE_HOME"]) / f"began-{how[-1]}").open("a") as file:
        file.write("x")
    time.sleep(5 if how == "slow 3" else 4.5)
    return Case(run=lambda: time.sleep(0.001), work=Work(items=1, item="nap"), check=lambda _: True)
'''


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=20)


def hindrance() -> str | None:
    """Return why no host can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "network namespaces need the commands ip and unshare"
    name = f"hx{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "unshare", "--mount", "--uts", "true")
    except subprocess.CalledProcessError as err:
        return f"no network namespace may be made here: {err.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return None


@dataclass(frozen=True)
class Host:
    """A namespace with an address, a name, a machine id, a token file and a place for results of its own."""

    number: int
    hub: str
    folder: Path
    plugin: Path

    @property
    def namespace(self) -> str:
        return f"{self.hub}-{self.number}"

    def build(self) -> None:
        self.folder.mkdir()
        (self.folder / "machine-id").write_text(f"{self.number:032x}\n")
        ip("netns", "add", self.namespace)
        ends = ("type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("-n", self.hub, "link", "add", f"v{self.number}", *ends)
        ip("-n", self.hub, "link", "set", f"v{self.number}", "master", "br0", "up")
        ip("-n", self.namespace, "addr", "add", f"{NETWORK}.{self.number}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", link, "up")

    def plug(self, state: str) -> None:
        """Pull its cable out (`down`) or put it back (`up`)."""
        ip("-n", self.hub, "link", "set", f"v{self.number}", state)

    def start(self, *args: str, output: Path) -> subprocess.Popen[bytes]:
        """Run a command of ours there, as on a machine of that name."""
        identity = f"[ ! -e /etc/machine-id ] || mount --bind {self.folder}/machine-id /etc/machine-id"
        script = f'hostname host-{self.number}; {identity}; exec "$@"'
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", script, "sh"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | TUNED
        env |= {"XDG_STATE_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        env |= {"PYTHONPATH": os.pathsep.join((TESTS, str(self.plugin))), "FAKE_NODE": f"host-{self.number}"}
        with output.open("wb") as file:
            return subprocess.Popen([*inside, sys.executable, "-P", *args], env=env, stdout=file, stderr=file)

    def node(self, *args: str, output: Path) -> subprocess.Popen[bytes]:
        """Run `harness node start` there."""
        return self.start("-m", "harness", "node", "start", *args, output=output)


@dataclass(frozen=True)
class Fleet:
    head: Host
    worker: Host
    worker_log: Path
    folder: Path


def until(what: Callable[[], bool], seconds: float, why: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why.read_text()
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(30)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    if reason := hindrance():
        pytest.skip(reason)
    folder, hub = tmp_path_factory.mktemp("hosts"), f"hx{os.getpid()}"
    install(folder / "plugin", "net_plugin", nap=PLUGIN)
    made = tuple(Host(number, hub, folder / f"host-{number}", folder / "plugin") for number in (1, 2))
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "link", "set", "br0", "up")
        for host in made:
            host.build()
        yield made[0], made[1]
    finally:
        for name in (*(host.namespace for host in made), hub):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def fleet(hosts: tuple[Host, Host]) -> Iterator[Fleet]:
    """A head and a node that joined it with a copy of its token."""
    head, worker = hosts
    folder = head.folder.parent
    logs = folder / "head.log", folder / "worker.log"
    first = head.node("--head", "--bind", f"{NETWORK}.1", output=logs[0])
    second = None
    try:
        until(lambda: "join " in logs[0].read_text(), 90, logs[0])
        token = worker.folder / "token"
        token.touch(mode=0o600)
        token.write_bytes((head.folder / "harness" / "fleet-token").read_bytes())
        second = worker.node("--join", HEAD, "--token-file", str(token), output=logs[1])
        until(lambda: "has joined" in logs[1].read_text(), 90, logs[1])
        yield Fleet(head, worker, logs[1], folder)
    finally:
        codes = [end(process) for process in (second, first) if process]
    assert codes == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("token", "words"), [("wrong", "refuses the token"), (None, "cannot read the token")])
def test_a_node_without_the_token_is_refused_in_seconds(fleet: Fleet, token: str | None, words: str) -> None:
    file, output = fleet.folder / "wrong", fleet.folder / "refused.log"
    file.unlink(missing_ok=True)
    if token:
        file.touch(mode=0o600)
        file.write_text(token)
    began = time.monotonic()
    refused = fleet.worker.node("--join", HEAD, "--token-file", str(file), output=output)
    assert refused.wait(30) == 2
    assert time.monotonic() - began < 10
    (line,) = output.read_text().splitlines()
    assert words in line


@pytest.mark.slow
def test_a_short_cut_costs_nothing_and_a_long_one_no_result(fleet: Fleet) -> None:
    """Eight seconds go by unnoticed; after longer the node is lost, joins again, and hands over what it had finished meanwhile."""
    output, out = fleet.folder / "run.log", fleet.folder / "out"
    args = ("nap", "--device", "cpu", "--ray", HEAD, "--out", str(out), "--json")
    run = fleet.head.start(str(Path(TESTS) / "fakedriver.py"), "all", "run", *args, output=output)
    try:
        until((fleet.worker.folder / "began-1").exists, 60, output)
        fleet.worker.plug("down")
        time.sleep(8)
        fleet.worker.plug("up")
        until((fleet.worker.folder / "began-3").exists, 60, output)
        assert "left the fleet" not in fleet.worker_log.read_text()
        fleet.worker.plug("down")
        until(lambda: any(b'"ended":"lost"' in path.read_bytes() for path in out.glob("*.tries")), 60, output)
        until(lambda: any(b"slow 3" in reply for reply in spooled(fleet.worker)), 60, output)
        fleet.worker.plug("up")
        assert run.wait(90) == 0, output.read_text()
    finally:
        run.kill()
        run.wait()
    (theirs,) = [r for r in reports(output) if r["node"]["name"] == "host-2"]
    tries = {o["measurement"]["job"]["params"]["how"][-1]: o["attempts"] for o in theirs["outcomes"]}
    assert (tries["1"], tries["2"], len(tries["3"])) == ([], [], 1)
    assert tries["3"][0]["ended"] == "lost"
    assert tries["3"][0]["reason"].endswith("; its answer lay in its node's spool, and counts")
    assert re.search("has left the fleet.*is back", fleet.worker_log.read_text(), re.DOTALL)
    assert (fleet.worker.folder / "began-3").read_text() == "x"  # not measured again


def spooled(host: Host) -> list[bytes]:
    """Return the replies that a node keeps since nobody has acknowledged them."""
    return [path.read_bytes() for path in (host.folder / "harness" / "spool").glob("*/[!.]*")]


def reports(output: Path) -> list[dict[str, Any]]:
    document = json.loads(output.read_text().splitlines()[-1])
    return [entry["report"] for entry in document["reports"]]
