"""A cluster that is gone is told by its sockets, and one that is away for a while is awaited."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness.cluster.pulse import Pulse
from harness.errors import FailureError


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_head_may_be_away_for_a_while_and_come_back(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        pulse = Pulse(f"127.0.0.1:{port}", "", clock)
        assert pulse.beats()
    assert pulse.beats(), "it is felt for once a second only"
    for _ in range(59):
        clock.now += 1
        assert not pulse.beats()
    with socket.create_server(("127.0.0.1", port)):
        clock.now += 1
        assert pulse.beats()
    clock.now += 60
    assert not pulse.beats()
    clock.now += 1
    with pytest.raises(FailureError, match="has not answered for 60 s: what was measured is on disk"):
        pulse.beats()


def test_without_the_raylet_of_this_node_nothing_goes_on(clock: Clock, tmp_path: Path) -> None:
    path = str(tmp_path / "raylet")
    with socket.socket(socket.AF_UNIX) as raylet:
        raylet.bind(path)
        raylet.listen()
        pulse = Pulse("", path, clock)
        for _ in range(3):
            assert pulse.beats()
            clock.now += 1
        raylet.settimeout(0)
        with pytest.raises(BlockingIOError):
            raylet.accept()  # nobody has connected to it
    assert Path(path).exists()  # as it is left behind by a process that was killed
    with pytest.raises(FailureError, match="Ray has ended on this node"):
        pulse.beats()
