"""The HTTP server's manners: slow clients, large answers, many connections, limits, the drain."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.echo import echo_server
from tests.support.echo_server import LARGE_BYTES
from tests.support.wait import WAIT_S, wait_until
from tests.support.wire import Wire

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(120)]

END = b" HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(scope="module")
def echo(processes: None) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with echo_server() as served:
        yield served


@pytest.fixture(scope="module")
def port(echo: tuple[int, subprocess.Popen[bytes]]) -> int:
    return echo[0]


@pytest.fixture(scope="module")
def hasty(processes: None) -> Iterator[int]:
    """A server without patience."""
    with echo_server(
        HTTP_HEAD_S=0.4, HTTP_REQUEST_S=0.4, HTTP_KEEPALIVE_S=0.4, HTTP_SEND_S=0.4
    ) as (port, _):
        with Wire(port) as wire:
            wire.send(b"GET /" + END)
            assert wire.read_response().status == 200
        yield port


def worker_of(arbiter: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def sockets_in(descriptors: Path) -> int:
    return sum(1 for each in descriptors.iterdir() if is_socket(each))


def is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except FileNotFoundError:  # closed meanwhile
        return False


def still_serves(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /alive" + END)
        assert wire.read_response().body.startswith(b"GET /alive")


def held_requests(port: int) -> int:
    """Return how many requests wait in the app for `/release`."""
    with Wire(port) as wire:
        wire.send(b"GET /held-count" + END)
        return int(wire.read_response().body)


# --- The conversation ---------------------------------------------------------------------


def test_continue_is_said_only_when_the_body_is_awaited(port: int) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with Wire(port) as wire:
        wire.send(head)
        assert wire.read_response().status == 100
        wire.send(b"hi")
        assert wire.read_response().body.endswith(b"body=hi")
        wire.send(head + b"ho")
        answer = wire.read_response()
        assert (answer.status, answer.body[-2:]) == (200, b"ho")


def test_a_client_that_has_ended_its_side_gets_its_answer(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /wait?0.05" + END)
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.read_response().status == 200
        assert wire.read_rest() == b""


def test_a_large_answer_arrives_whole_however_slowly_it_is_read(port: int) -> None:
    with Wire(port) as wire:
        wire.send((b"GET /large" + END) * 2)
        wire.send(b"GET /wait?0.1" + END)  # answered only when the others have been read
        for _ in range(2):
            assert len(wire.read_response().body) == LARGE_BYTES
        assert wire.read_response().status == 200


def test_a_body_of_the_largest_size(port: int) -> None:
    size = 10 * 1024 * 1024
    with Wire(port) as wire:
        wire.send(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        wire.send(b"b" * size)
        assert wire.read_response().body.endswith(b"b" * 1_000)


def test_a_refused_body_does_not_cost_the_client_its_answer(port: int) -> None:
    size = 12 * 1024 * 1024
    with Wire(port) as wire:
        wire.send(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        wire.send(b"b" * size)  # all of it, though the answer is long there
        answer = wire.read_response()
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["code"] == "PAYLOAD_TOO_LARGE"
        assert wire.read_rest() == b""


def test_an_app_that_fails(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /broken" + END)
        answer = wire.read_response()
        assert answer.status == 500
        assert b"purpose" not in answer.body
    with Wire(port) as wire:
        wire.send(b"GET /broken-stream" + END)
        got = wire.read_rest()
        assert b"begun" in got
        assert not got.endswith(b"0\r\n\r\n")  # so the client knows that it is not whole
    still_serves(port)


def test_an_answer_cannot_be_split(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /split" + END)
        got = wire.read_rest()
    assert got.startswith(b"HTTP/1.1 500 ")
    assert b"Injected" not in got


# --- Limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("sent, answered", [
    (b"", b""),
    (b"GET /a HTTP/1.1\r\nHo", b"HTTP/1.1 408 "),
    (b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel", b"HTTP/1.1 408 "),
    (b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
     b"HTTP/1.1 408 "),
    (b"GET /a" + END, b"HTTP/1.1 200 "),
], ids=["nothing", "half a head", "half a body", "half a chunk", "nothing more"])
def test_who_is_slow_is_given_up(hasty: int, sent: bytes, answered: bytes) -> None:
    with Wire(hasty) as wire:
        wire.send(sent)
        assert wire.read_rest().startswith(answered)


def test_who_drips_is_given_up_too(hasty: int) -> None:
    """A byte now and then does not extend the time for a head."""
    with Wire(hasty) as wire:
        wire.sock.settimeout(0.1)
        wire.send(b"GET /a HTTP/1.1\r\nHost: h\r\nX-Drip: ")
        got = b""
        while not got:
            wire.send(b"x")
            try:
                got = wire.sock.recv(65_536)
            except TimeoutError:
                continue
            break
        assert got.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", [b"/large", b"/endless"])
def test_who_does_not_read_is_cut_off(path: bytes) -> None:
    with echo_server(HTTP_SEND_S=0.4) as (port, arbiter):
        still_serves(port)
        descriptors = Path(f"/proc/{worker_of(arbiter)}/fd")
        with Wire(port) as wire:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
            wire.send(b"GET " + path + END)
            assert wire.sock.recv(10)
            count = sockets_in(descriptors)
            still_serves(port)
            wait_until("the server has let go", lambda: sockets_in(descriptors) < count)


def test_an_endless_answer_is_made_only_as_fast_as_it_is_read(
    echo: tuple[int, subprocess.Popen[bytes]]
) -> None:
    port, arbiter = echo
    still_serves(port)
    before = rss_bytes(worker_of(arbiter))
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(20)]
        for wire in wires:
            wire.send(b"GET /endless" + END)
        for wire in wires:
            for _ in range(20):
                assert wire.sock.recv(65_536)
        still_serves(port)
        assert rss_bytes(worker_of(arbiter)) - before < 20_000_000


def test_bodies_that_arrive_have_a_budget() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
    with echo_server(HTTP_BODIES_BYTES=150_000) as (port, _), Wire(port) as a, Wire(port) as b:
        a.send(head + b"a" * 99_999)
        still_serves(port)
        b.send(head + b"b" * 99_999)
        assert b.read_response().status == 503
        a.send(b"a")
        assert a.read_response().status == 200


def test_requests_beyond_the_greenlets_wait_their_turn() -> None:
    with echo_server(HTTP_DISPATCHERS=2) as (port, _), ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(7)]
        for wire in wires:
            wire.send(b"GET /wait?0.05" + END)
        assert [wire.read_response().status for wire in wires] == [200] * 7


def test_connections_beyond_the_limit_wait_until_one_closes() -> None:
    with echo_server(HTTP_CONNECTIONS=3) as (port, _), ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(4)]
        for wire in wires:
            wire.send(b"GET /a" + END)
        answered = [wire.read_response().status for wire in wires[:3]]
        assert answered == [200] * 3
        wires[3].sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wires[3].sock.recv(1)
        wires[3].sock.settimeout(30)
        wires[0].sock.close()
        assert wires[3].read_response().status == 200


# --- Many ---------------------------------------------------------------------------------


def test_blocked_requests_block_nobody_else(port: int) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(200)]
        for wire in wires:
            wire.send(b"GET /held" + END)
        still_serves(port)
        wait_until("all requests are held", lambda: held_requests(port) == 200)
        with Wire(port) as other:
            other.send(b"GET /release" + END)
            assert other.read_response().status == 200
        assert [wire.read_response().status for wire in wires] == [200] * 200


def test_idle_connections_are_cheap(echo: tuple[int, subprocess.Popen[bytes]]) -> None:
    port, arbiter = echo
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(5_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 500), hard))
    try:
        with ExitStack() as stack:
            still_serves(port)
            pid = worker_of(arbiter)  # there is one once it serves
            before = rss_bytes(pid)
            wires = [stack.enter_context(Wire(port)) for _ in range(count)]
            for wire in wires:
                wire.send(b"GET /a" + END)
            for wire in wires:
                assert wire.read_response().status == 200
            assert (rss_bytes(pid) - before) / count < 8_192
            still_serves(port)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_are_shared_evenly() -> None:
    with echo_server(workers=2) as (port, arbiter), ExitStack() as stack:
        children = Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children")

        def both_serve() -> bool:
            seen = set()
            for _ in range(20):
                with Wire(port) as wire:
                    wire.send(b"GET /process" + END)
                    seen.add(wire.read_response().body)
            return len(seen) == len(children.read_text().split()) == 2

        wait_until("both workers serve", both_serve)
        counts: Counter[bytes] = Counter()
        for _ in range(40):
            wire = stack.enter_context(Wire(port))
            wire.send(b"GET /process" + END)
            counts[wire.read_response().body] += 1
    assert min(counts.values()) >= 12, counts


# --- The end ------------------------------------------------------------------------------


def test_sigterm() -> None:
    with echo_server() as (port, arbiter), ExitStack() as stack:
        idle, waiting, partial, half = (stack.enter_context(Wire(port)) for _ in range(4))
        idle.send(b"GET /a" + END)
        assert idle.read_response().status == 200
        waiting.send(b"GET /wait?1" + END)
        partial.send(b"GET /a HTTP/1.1\r\nHo")
        half.send(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel")
        still_serves(port)
        arbiter.send_signal(signal.SIGTERM)
        assert idle.read_rest() == b""
        partial.send(b"st: h\r\n\r\n")
        half.send(b"lo")
        for wire in (partial, half, waiting):
            answer = wire.read_response()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert wire.read_rest() == b""
        assert arbiter.wait(WAIT_S) == 0


def test_a_drain_that_takes_long_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    with echo_server(HTTP_SEND_S=3.0) as (port, arbiter), Wire(port) as reader:
        reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        reader.send(b"GET /large" + END)
        assert reader.sock.recv(10)
        arbiter.send_signal(signal.SIGTERM)
        assert arbiter.wait(WAIT_S) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "drain.waiting" in line]
    assert said
    for part in ("reader", "127.0.0.1", "slowest_unsent_bytes"):
        assert part in said[0]
