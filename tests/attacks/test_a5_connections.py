"""A5: a client that fills a server with connections or half-sent bodies loses only its own.

The attacker is 127.0.0.1, others come from 127.0.0.2 and so on. Limits are small, so that few
connections fill a worker; every budget is a count of requests that are served, not a time.
"""

from __future__ import annotations

import gc
import socket
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pylon import limits
from tests.support.echo import echo_server
from tests.support.echo_server import LARGE_BYTES
from tests.support.wait import wait_until
from tests.support.wire import Wire
from workers.http.bodies import Body, ChunkedBody
from workers.http.connection import Connection
from workers.http.connection_limits import ConnectionLimits, choose_holder
from workers.net.counts import CountTable, SharedCounts
from workers.net.head import RequestError

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(120)]

END = b" HTTP/1.1\r\nHost: h\r\n\r\n"
PLACES = 20
ATTACKER, OTHER, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"


class From(Wire):
    """A connection from a given address."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(port, address=address)

    def asks(self, path: bytes = b"/a") -> bool:
        """Whether a request on it is answered."""
        try:
            self.send(b"GET " + path + END)
            return self.read_response().status == 200
        except (AssertionError, OSError):
            return False

    def is_closed(self) -> bool:
        """Whether the server has closed it. Nothing may be left to read."""
        self.sock.setblocking(False)
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.sock.settimeout(30)


@pytest.fixture
def port(processes: None) -> Iterator[int]:
    with echo_server(HTTP_CONNECTIONS=PLACES, HTTP_GRACE_S=0.2) as (port, _):
        still_serves(port, OTHER)
        yield port


def still_serves(port: int, address: str, requests: int = 1) -> None:
    """Assert that the server answers each request, on a connection of its own."""
    assert answered(port, address, requests) == requests


def answered(port: int, address: str, requests: int) -> int:
    """How many requests the server answers, each on a connection of its own."""
    count = 0
    for _ in range(requests):
        with From(port, address) as wire:
            count += wire.asks()
    return count


def opened(stack: ExitStack, port: int, address: str, count: int) -> list[From]:
    return [stack.enter_context(From(port, address)) for _ in range(count)]


# --- Connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [
    b"", b"GET /a HTTP/1.1\r\nHo", b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx",
    b"GET /large" + END,
], ids=["silent", "half a head", "half a body", "not reading"])
def test_connections_that_wait_for_their_client_keep_nobody_out(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        for wire in opened(stack, port, ATTACKER, PLACES * 3):
            wire.send(sent)
        assert answered(port, OTHER, PLACES) == PLACES
        assert answered(port, ATTACKER, PLACES) == PLACES  # a client behind the same address


def test_the_longest_idle_connection_of_the_address_with_most_gives_way(port: int) -> None:
    with ExitStack() as stack:
        others = opened(stack, port, OTHER, 6)
        attackers = opened(stack, port, ATTACKER, PLACES - 6)
        for wire in (*others, *attackers):
            assert wire.asks()
        assert attackers[0].asks()  # so the second one is now idle for longer than any
        newcomers = opened(stack, port, THIRD, 3)
        assert all(wire.asks() for wire in newcomers)
        wait_until("room was made", lambda: sum(wire.is_closed() for wire in attackers) >= 2)
        assert attackers[1].is_closed()
        assert not attackers[0].is_closed()
        assert all(wire.asks() for wire in (*others, *newcomers))


def test_a_request_that_is_being_answered_is_never_cut(port: int) -> None:
    with ExitStack() as stack:
        busy = opened(stack, port, ATTACKER, PLACES - 1)
        for wire in busy:
            wire.send(b"GET /wait?1" + END)
        idle = opened(stack, port, ATTACKER, 1)
        assert idle[0].asks()
        still_serves(port, OTHER)
        assert [wire.read_response().status for wire in busy] == [200] * len(busy)


def test_one_address_has_a_cap_and_its_longest_idle_connections_go() -> None:
    with echo_server(HTTP_ADDRESS_CONNECTIONS=10, HTTP_GRACE_S=0.0) as (port, _), \
            ExitStack() as stack:
        others = opened(stack, port, OTHER, 5)
        assert all(wire.asks() for wire in others)
        attackers = opened(stack, port, ATTACKER, 30)
        assert attackers[-1].asks()
        wait_until("the cap holds", lambda: sum(not w.is_closed() for w in attackers) <= 10)
        assert all(wire.asks() for wire in (*others, attackers[-1]))


def test_few_descriptors_are_as_good_as_few_places() -> None:
    """The reserve stays free, and the address that took the rest loses connections."""
    with limited(120) as (port, arbiter), ExitStack() as stack:
        still_serves(port, OTHER)
        opened(stack, port, ATTACKER, 300)
        still_serves(port, OTHER, 60)
        (worker,) = Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()
        used = [int(each.name) for each in Path(f"/proc/{worker}/fd").iterdir()]
        assert max(used) <= 120 - 120 // 4 + 2  # but for one that is on its way down


class limited:  # noqa: N801  used as a function
    """An echo server whose processes may have so many descriptors."""

    def __init__(self, descriptors: int) -> None:
        self._descriptors = descriptors
        self._stack = ExitStack()

    def __enter__(self) -> tuple[int, subprocess.Popen[bytes]]:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with ExitStack() as until_started:
            until_started.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, hard))
            return self._stack.enter_context(echo_server(HTTP_GRACE_S=0.2))

    def __exit__(self, *ex: object) -> None:
        self._stack.close()


# --- Bodies and answers --------------------------------------------------------------------


# Who shares the attacker's address is told from it by moving; others by their address, at once.
WHOSE = pytest.mark.parametrize(("address", "stalled_s"), [(ATTACKER, 0.0), (OTHER, 60.0)])


@WHOSE
def test_half_sent_bodies_do_not_make_other_large_bodies_a_503(
    address: str, stalled_s: float
) -> None:
    size = 300_000
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    with echo_server(HTTP_BODIES_BYTES=2_000_000, HTTP_STALLED_S=stalled_s) as (port, _), \
            ExitStack() as stack:
        attackers = opened(stack, port, ATTACKER, 42)
        for wire in attackers:
            wire.send(head % size + b"a" * (size // 2))
        still_serves(port, OTHER)
        served = 0
        for _ in range(8):
            with From(port, address) as wire:
                wire.send(head % 1_000_000 + b"b" * 500_000)
                wire.send(b"b" * 500_000)
                served += wire.read_response().status == 200
        assert served == 8
        cut = sum(bool(refusal(wire)) for wire in attackers)
        assert cut >= 42 - 2_000_000 // (size // 2)


def refusal(wire: From) -> bytes:
    wire.sock.settimeout(0.01)
    try:
        got = wire.sock.recv(1 << 16)
    except OSError:
        return b""
    assert got.startswith(b"HTTP/1.1 503 "), got
    assert b"retry-after" in got
    return got


def test_a_body_that_moves_is_not_cut_for_one_that_begins() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n"
    with echo_server(HTTP_BODIES_BYTES=1_000_000, HTTP_STALLED_S=60) as (port, _), \
            From(port, OTHER) as moving, From(port, ATTACKER) as late:
        moving.send(head + b"a" * 400_000)
        late.send(head + b"b" * 800_000)
        assert late.read_response().status == 503  # it holds more than the other
        moving.send(b"a" * 500_000)
        assert moving.read_response().status == 200


@WHOSE
def test_answers_that_nobody_reads_do_not_cost_others_theirs(
    address: str, stalled_s: float
) -> None:
    with echo_server(
        HTTP_OUTGOING_BYTES=3 * LARGE_BYTES, HTTP_STALLED_S=stalled_s
    ) as (port, _), ExitStack() as stack:
        for wire in opened(stack, port, ATTACKER, 8):
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
            wire.send(b"GET /large" + END)
        still_serves(port, OTHER)
        for _ in range(6):
            with From(port, address) as wire:
                wire.send(b"GET /large" + END)
                assert len(wire.read_response().body) == LARGE_BYTES


def test_a_body_in_tiny_chunks_takes_turns_with_others() -> None:
    """Work is counted: chunks for each turn, and all of them against the bytes they bring."""
    body = ChunkedBody()
    left = b"1\r\nx\r\n" * 5_000
    turns = []
    while left:
        before = body.held_bytes
        left = body.feed(left)
        turns.append(body.held_bytes - before)
    assert max(turns) <= 512
    assert body.value is None
    assert body.feed(b"0\r\n\r\nrest") == b"rest"
    assert body.value == b"x" * 5_000


def test_a_body_in_very_many_tiny_chunks_is_refused() -> None:
    body = ChunkedBody()
    with pytest.raises(RequestError, match="larger"):
        for _ in range(100):
            left = b"1\r\nx\r\n" * 500
            while left:
                left = body.feed(left)
    assert body.held_bytes < 20_000
    lines = ChunkedBody()  # as a client that writes line by line sends them
    for _ in range(50_000):
        assert lines.feed(b"14\r\n%b\r\n" % (b"y" * 20)) == b""
    lines.feed(b"0\r\n\r\n")
    assert lines.value == b"y" * 1_000_000


@pytest.mark.parametrize("length", [None, 300_000])
def test_a_body_in_single_bytes_takes_no_more_memory_than_it_has_bytes(length: int | None) -> None:
    body = ChunkedBody() if length is None else Body(length)
    pieces = [bytes([65 + n % 26, 66]) for n in range(150_000)]  # of two: one is shared by Python
    gc.collect()
    tracemalloc.start()
    try:
        if length is None:
            body.feed(b"%x\r\n" % 300_000)
        for piece in pieces:
            body.feed(piece)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body.held_bytes == 300_000
    assert used < 2 * 300_000 + 50_000


def test_one_who_sends_a_large_body_does_not_keep_the_worker() -> None:
    """Requests of others are answered while it arrives, however fast it comes."""
    with echo_server() as (port, _), From(port, OTHER) as other, From(port, ATTACKER) as wire:
        assert other.asks()
        piece = b"1\r\nx\r\n" * 8_000
        head = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        sending = threading.Thread(target=wire.send, args=(head + piece * 2,))
        sending.start()
        assert all(other.asks() for _ in range(10))
        sending.join()
        wire.send(b"0\r\n\r\n")
        assert wire.read_response().body.endswith(b"x" * 16_000)


# --- Counting ------------------------------------------------------------------------------


def both_counts(folder: Path) -> tuple[SharedCounts, SharedCounts]:
    """The counts of two workers, as each has them. (Both live in this process.)"""
    one, two = CountTable(folder / "1"), CountTable(folder / "2")
    one.own()
    two.own()
    return (
        SharedCounts(one, [CountTable(folder / "2")]), SharedCounts(two, [CountTable(folder / "1")])
    )


def test_the_cap_counts_the_connections_of_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_ADDRESS_CONNECTIONS", 100)
    first, second = (
        ConnectionLimits(2, counts, has_proxies=False) for counts in both_counts(tmp_path)
    )
    for _ in range(120):
        first.add("a")
    for number in range(1, 121):
        second.add("a")
        assert second.has_too_many("a") is (number > 80)
        second.add("b")
        assert not second.has_too_many("b")
    for _ in range(60):
        first.remove("a")
    assert not second.has_too_many("a")


def test_behind_proxies_their_connections_have_no_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_ADDRESS_CONNECTIONS", 10)
    behind, direct = (ConnectionLimits(1, None, has_proxies=proxies) for proxies in (True, False))
    for _ in range(11):
        behind.add("10.0.0.1")
        direct.add("10.0.0.1")
        behind.add("")  # a Unix socket has no address
    assert direct.has_too_many("10.0.0.1")
    assert not behind.has_too_many("10.0.0.1")
    assert not behind.has_too_many("")


def test_behind_proxies_bytes_count_for_the_client_that_the_proxy_names() -> None:
    loop: Any = SimpleNamespace(hops=1, now_s=0.0, bodies=None, outgoing=None)

    def holder(forwarded: str) -> Connection:
        made = Connection(loop, socket.socket(), {"REMOTE_ADDR": "10.0.0.1"}, "10.0.0.1", 0.0)
        made._forwarded = forwarded  # as `_take_head` notes it
        return made

    attackers = [holder(f"6.6.6.6, 2001:db8::{number}") for number in range(3)]
    other = holder("192.0.2.1")
    assert {each.client_network for each in attackers} == {"2001:db8::/64"}
    held = [(each, 60, 0.0) for each in attackers] + [(other, 100, 0.0)]
    assert choose_holder(held, other, 0.1) in attackers
    assert choose_holder(held, attackers[1], 0.1) is attackers[1]
    for each in (*attackers, other):
        each._sock.close()
