"""workers.hub.addresses: sockets of an address, counted over all processes of a role."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.errors import SocketLimit
from tests.support.examples import count_examples
from tests.support.stage import ROOT
from tests.support.wait import WAIT_S
from workers.hub.addresses import AddressCap, shared_cap
from workers.net.counts import CountTable

_CHILD = """
import sys
from pathlib import Path
from workers.hub.addresses import shared_cap
cap = shared_cap(3, Path(sys.argv[1]), "ws", "2", 2)
cap.add_socket("10.0.0.1"); cap.add_socket("10.0.0.1")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_limit_of_one_process() -> None:
    cap = AddressCap(2)
    cap.add_socket("a")
    cap.add_socket("a")
    cap.add_socket("b")
    for _ in range(2):
        with pytest.raises(SocketLimit, match="2 sockets"):
            cap.add_socket("a")
    cap.remove_socket("a")
    cap.add_socket("a")


def test_without_a_limit_no_socket_is_counted() -> None:
    cap = AddressCap(0)
    for _ in range(100):
        cap.add_socket("a")
    cap.remove_socket("a")
    assert cap._open == {}


@pytest.mark.usefixtures("processes")
def test_siblings_count_until_they_are_killed(tmp_path: Path) -> None:
    cap = shared_cap(3, tmp_path, "ws", "1", 2)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "open\n"
    cap.add_socket("10.0.0.1")
    with pytest.raises(SocketLimit):
        cap.add_socket("10.0.0.1")
    cap.add_socket("10.0.0.2")
    child.send_signal(signal.SIGKILL)
    child.wait(WAIT_S)
    cap.add_socket("10.0.0.1")
    cap.add_socket("10.0.0.1")
    with pytest.raises(SocketLimit):
        cap.add_socket("10.0.0.1")
    successor = shared_cap(3, tmp_path, "ws", "2", 2)  # begins at zero, in the same file
    with pytest.raises(SocketLimit):
        successor.add_socket("10.0.0.1")
    cap.remove_socket("10.0.0.1")
    successor.add_socket("10.0.0.1")
    with pytest.raises(SocketLimit):
        cap.add_socket("10.0.0.1")
    child.stdin.close()
    child.stdout.close()


def test_other_roles_have_counts_of_their_own(tmp_path: Path) -> None:
    caps = [shared_cap(1, tmp_path, role, "1", 2) for role in ("ws", "sse")]
    for cap in caps:
        cap.add_socket("a")
    for cap in caps:
        with pytest.raises(SocketLimit):
            cap.add_socket("a")


@settings(max_examples=count_examples(50))
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=200))
def test_a_table_says_what_was_set(steps: list[tuple[int, int]]) -> None:
    """Keys of one bucket: as many as it has room for are told exactly, and none as another's."""
    with tempfile.TemporaryDirectory() as folder:
        table, reader = CountTable(Path(folder, "t")), CountTable(Path(folder, "t"))
        table.own()
        model: dict[int, int] = {}
        for number, count in steps:
            key = (number + 1) * 8_192 + 5
            has_room = len(model) < 16
            table.set(key, count)
            if count and (has_room or key in model):
                model[key] = count
            elif not count:
                model.pop(key, None)
            assert all(reader.count(each) == model[each] for each in model)
        for number in range(41):
            key = (number + 1) * 8_192 + 5
            assert reader.count(key) == model.get(key, 0)
