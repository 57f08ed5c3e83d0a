"""Before Ray is let near a cluster: is it there, is it Ray, is it our version, does it let us in; and what Ray is told."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import rayenv
from harness.errors import MisuseError

VERSION = metadata.version("ray")
TOKEN = "0123456789abcdef"  # noqa: S105 - of a server in this process


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    return path


@contextmanager
def head(version: str = VERSION, *, asks: str | None = TOKEN) -> Iterator[str]:
    """A server that answers as a head does; with `asks` only who has that token."""
    import grpc

    def alive(_request: bytes, context: Any) -> bytes:
        if asks and ("authorization", f"Bearer {asks}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b"\n\x00\x12" + bytes([len(version)]) + version.encode() + b"\x20\x01"

    handler = grpc.unary_unary_rpc_method_handler(alive)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_head_that_we_may_enter_is_told_with_its_token(token: Path) -> None:
    with head() as address:
        access = rayenv.check(address, token)
    assert (access.address, access.token, access.loopback_only) == (address, token, True)


def test_the_token_is_where_ray_was_told_or_beside_our_settings(
    token: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert rayenv.default_token() == tmp_path / "config" / "harness" / "fleet-token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with head() as address:
        assert rayenv.check(address).token == token


def test_a_wrong_token_is_refused_at_once(token: Path) -> None:
    began = time.monotonic()
    with head(asks="another") as address, pytest.raises(MisuseError, match=r"refuses the token in '.*/token'"):
        rayenv.check(address, token)
    assert time.monotonic() - began < 5


def test_a_missing_token_says_where_it_belongs(tmp_path: Path) -> None:
    with head() as address, pytest.raises(MisuseError, match=r"cannot read the token .*copy it from the head"):
        rayenv.check(address, tmp_path / "none")


@pytest.mark.parametrize(("text", "mode", "words"), [("a b", 0o600, "holds no token"), (TOKEN, 0o640, "chmod 600")])
def test_a_token_that_is_none_or_not_secret_is_refused(token: Path, text: str, mode: int, words: str) -> None:
    token.write_text(text)
    token.chmod(mode)
    with pytest.raises(MisuseError, match=words):
        rayenv.read_token(token)


def test_binary_is_no_token(token: Path) -> None:
    token.write_bytes(b"\xff")
    with pytest.raises(MisuseError, match="it is not text"):
        rayenv.read_token(token)


@pytest.mark.parametrize(("version", "told"), [("2.59.1", "Ray 2.59.1"), ("", "does not say which")])
def test_another_version_is_refused_by_both_names(token: Path, version: str, told: str) -> None:
    with head(version) as address, pytest.raises(MisuseError, match=f"{told}.*{VERSION}"):
        rayenv.check(address, token)


def test_an_open_head_is_entered_on_this_machine_only(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with head(asks=None) as address:
        assert rayenv.check(address, token).token is None
        monkeypatch.setattr(rayenv, "is_loopback", lambda _: False)  # as if it were elsewhere
        with pytest.raises(MisuseError, match="lets in anybody"):
            rayenv.check(address, token)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert rayenv.check(address, token).token is None


def test_what_is_not_ray_is_told_so(token: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(MisuseError, match="is not the head of a Ray cluster"):
            rayenv.check(address, token)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:port", ":1"])
def test_what_is_no_address_is_told_so(address: str) -> None:
    with pytest.raises(MisuseError, match="HOST:PORT"):
        rayenv.check(address)


def test_a_port_that_is_none_is_told_so() -> None:
    with pytest.raises(MisuseError, match="no Ray cluster answers"):
        rayenv.check("127.0.0.1:99999")


def test_with_tls_the_probe_is_left_to_ray(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with head(asks="another") as address:
        assert rayenv.check(address, token).token == token


@pytest.mark.parametrize("reply", [b"", b"\x12", b"\x0a\x00", b"\x08\x01\x12\x01x", b"\x12\x7fshort"])
def test_a_damaged_answer_never_breaks_the_reader(reply: bytes) -> None:
    assert rayenv._version(reply) in {"", "short"}


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    old = os.umask(0)
    try:
        assert rayenv.make_token(path)
    finally:
        os.umask(old)
    first = rayenv.read_token(path)
    assert len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not rayenv.make_token(path)
    assert rayenv.read_token(path) == first
    with pytest.raises(MisuseError, match="cannot write a token"):
        rayenv.make_token(path / "beneath" / "token")


def test_ray_is_told_the_same_everywhere_and_no_secret(token: Path) -> None:
    access = rayenv.Access(address="10.0.0.1:6379", token=token)
    variables, dropped = rayenv.environment(access, current={"RAY_health_check_period_ms": "7"})
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert variables["RAY_worker_niceness"] == "0"
    assert variables["RAY_health_check_period_ms"] == "7"
    assert {"RAY_AUTH_TOKEN", "RAY_ADDRESS"} <= set(dropped)
    assert not any(TOKEN in value for value in variables.values())
    open_, _ = rayenv.environment(rayenv.Access(address="127.0.0.1:1", token=None), current={})
    assert open_["RAY_AUTH_MODE"] == "disabled"


def test_preparing_leaves_the_environment_and_the_disk_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "in the open")
    before = dict(os.environ)
    with rayenv.prepare("local") as access:
        assert access.token
        assert access.token.parent.stat().st_mode & 0o777 == 0o700
        assert len(str(access.token.parent)) < 40
        assert os.environ["RAY_TMPDIR"] == str(access.token.parent)
        assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(os.environ)
    assert dict(os.environ) == before
    assert not access.token.parent.exists()


def test_preparing_for_a_cluster_checks_it(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with head() as address, rayenv.prepare(address) as access:
        assert access.token == token
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # it is to be had at 127.0.0.1 alone


QUIET = """
import os, sys
from harness.cluster.rayenv import quiet
print("before")
from pathlib import Path
with quiet(Path(sys.argv[1]) if sys.argv[1:] else None) as ours:
    os.write(1, b"noise 1\\n"); os.write(2, b"noise 2\\n"); print("noise 3"); os.system("echo noise 4")
    print("heard", file=ours)
print("after")
"""


def test_noise_goes_to_a_file_and_our_own_words_to_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended = subprocess.run([sys.executable, "-c", QUIET, str(log)], capture_output=True, text=True, check=True)
    assert ended.stdout == "before\nafter\n"
    assert ended.stderr == "heard\n"
    assert sorted(log.read_text().splitlines()) == ["noise 1", "noise 2", "noise 3", "noise 4"]
    ended = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("before\nafter\n", "heard\n")


def test_the_console_is_still_heard_where_the_noise_is_not() -> None:
    code = (
        "import os\nfrom harness.cli.output import stderr, hushed\nconsole = stderr()\n"
        "with hushed('local'):\n os.write(2, b'noise')\n console.print('heard')\n"
        "with hushed(None):\n os.write(2, b'told')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "heard\ntold"
