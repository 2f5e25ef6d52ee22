"""pylon.cluster: links and ports over real sockets, without workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
import zmq

from pylon import limits, metrics
from pylon.clock import SystemRandom
from pylon.cluster import envelopes
from pylon.cluster.addresses import bind_endpoint, worker_endpoint
from pylon.cluster.envelopes import OpenTunnel
from pylon.cluster.keys import is_key, load_key_pair, make_key_pair, save_key_pair
from pylon.cluster.links import Links
from pylon.errors import Draining, PylonError, ShardNotFound, Unavailable
from tests.support.cluster import HEAD, NODE_A, A, B, Nodes, User
from tests.support.wait import WAIT_S, run_greenlets_until


def outcome(call: Callable[[], bytes]) -> gevent.Greenlet[..., object]:
    """Run a call in a greenlet, whose value is the answer or the error."""
    def run() -> object:
        try:
            return call()
        except PylonError as ex:
            return ex
    return gevent.spawn(run)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


# --- Calls ---------------------------------------------------------------------------------


def test_a_call_is_answered_and_an_error_comes_back_as_itself(nodes: Nodes) -> None:
    assert nodes.link().call(b"hello") == b"HELLO"
    with pytest.raises(ShardNotFound, match="no such shard"):
        nodes.link().call(b"fail")
    with pytest.raises(PylonError, match="log says why"):
        nodes.link().call(b"break")
    assert len(nodes.links) == 1 and nodes.port.nodes == ["a"]


def test_calls_beyond_the_bound_are_refused(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALLS_IN_FLIGHT", 3)
    waiting = [outcome(lambda: nodes.link().call(b"wait")) for _ in range(3)]
    gevent.sleep(0)
    with pytest.raises(Unavailable, match="in flight"):
        nodes.link().call(b"one more")
    nodes.release.set()
    gevent.joinall(waiting, timeout=WAIT_S)
    assert [each.value for each in waiting] == [b"WAIT"] * 3


def test_a_call_that_is_not_answered_ends(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_TIMEOUT_S", 0.1)
    with pytest.raises(Unavailable, match=r"within 0\.1 s"):
        nodes.link().call(b"wait")
    assert not nodes.link().is_used
    nodes.release.set()


# --- Keys ----------------------------------------------------------------------------------


def test_a_stranger_without_a_registered_key_is_refused(nodes: Nodes) -> None:
    stranger = Links(make_key_pair(), nodes.clock, SystemRandom())
    call = outcome(lambda: stranger.find(nodes.url, B.public, "1").call(b"hello"))
    assert nodes.link().call(b"hello") == b"HELLO"
    run_greenlets_until("it asks", lambda: nodes.port._zap._waiting)
    before = metrics.CLUSTER_REFUSED.labels("key")._value.get()
    for _ in range(3):
        nodes.peers.replace([NODE_A])
    assert metrics.CLUSTER_REFUSED.labels("key")._value.get() == before + 1
    gevent.sleep(0.1)
    assert not call.ready() and nodes.port.nodes == ["a"]
    nodes.clock.advance(limits.CLUSTER_DEAD_S + 1)
    stranger.tick()
    gevent.joinall([call], timeout=WAIT_S)
    assert isinstance(call.value, Unavailable)
    stranger.close()


def test_a_node_that_has_just_started_is_admitted_with_the_next_report(nodes: Nodes) -> None:
    nodes.peers.replace([])
    call = outcome(lambda: nodes.link().call(b"hello"))
    run_greenlets_until("it asks", lambda: nodes.port._zap._waiting)
    nodes.peers.replace([])
    nodes.peers.replace([NODE_A])
    gevent.joinall([call], timeout=WAIT_S)
    assert call.value == b"HELLO"


def test_many_strangers_do_not_fill_the_handler(nodes: Nodes) -> None:
    strangers = [Links(make_key_pair(), nodes.clock, SystemRandom()) for _ in range(70)]
    for stranger in strangers:
        stranger.find(nodes.url, B.public, "1")
    run_greenlets_until("they ask", lambda: len(nodes.port._zap._waiting) == 64)
    assert nodes.link().call(b"hello") == b"HELLO"
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
def test_a_client_without_curve_gets_nothing(nodes: Nodes, kind: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = context.socket(kind)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(nodes.url)
    parcel = envelopes.Parcel(1, "s", 1, [envelopes.Envelope(envelopes.BEAT, [0])])
    client.send(envelopes.encode(parcel))
    assert nodes.link().call(b"hello") == b"HELLO"
    gevent.sleep(0.2)
    assert not client.poll(0) and nodes.port.nodes == ["a"]
    client.close()
    context.term()


def test_a_link_with_the_key_of_another_server_comes_to_nothing(nodes: Nodes) -> None:
    """A process at the address of a node, without its secret half, reads nothing."""
    call = outcome(lambda: nodes.links.find(nodes.url, make_key_pair().public, "1").call(b"x"))
    gevent.sleep(0.3)
    assert not call.ready() and nodes.port.nodes == []
    nodes.clock.advance(limits.CLUSTER_DEAD_S + 1)
    nodes.links.tick()
    gevent.joinall([call], timeout=WAIT_S)
    assert isinstance(call.value, Unavailable) and len(nodes.links) == 0


def test_a_restarted_node_is_reached_by_its_new_key(nodes: Nodes) -> None:
    entry, _ = nodes.tunnel()
    nodes.port.close()
    renewed = make_key_pair()
    nodes.port = nodes.new_port(renewed)
    assert nodes.links.find(nodes.url, renewed.public, "1").call(b"hello") == b"HELLO"
    nodes.clock.advance(limits.CLUSTER_DEAD_S + 1)
    nodes.links.tick()
    assert entry.ends == [(None, True)]


def test_a_node_that_has_left_the_registry_is_dropped_and_admitted_again_later(
    nodes: Nodes,
) -> None:
    entry, exit_ = nodes.tunnel()
    nodes.peers.replace([])
    nodes.port.tick()
    assert exit_.ends == [(None, True)] and nodes.port.nodes == []
    run_greenlets_until("the entry has ended", lambda: entry.ends == [(None, True)])
    call = outcome(lambda: nodes.link().call(b"hello"))
    gevent.sleep(0.3)
    assert not call.ready()
    nodes.peers.replace([NODE_A])
    nodes.clock.advance(limits.CLUSTER_DEAD_S + 1)
    nodes.links.tick()
    assert nodes.link().call(b"hello") == b"HELLO"
    gevent.joinall([call], timeout=WAIT_S)


def test_key_pairs_are_saved_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key_pair(path) is None
    save_key_pair(path, A)
    save_key_pair(path, B)
    assert load_key_pair(path) == B and path.stat().st_mode & 0o777 == 0o600
    path.write_text("something else")
    with pytest.raises(ValueError, match="no key pair"):
        load_key_pair(path)
    assert is_key(A.public) and not is_key(A.public[1:]) and not is_key("ä" * 40)


# --- Tunnels -------------------------------------------------------------------------------


def test_bytes_pass_in_order_both_ways_with_their_boundaries(nodes: Nodes) -> None:
    entry, exit_ = nodes.tunnel()
    assert exit_.opening == OpenTunnel("192.0.2.7", True, HEAD)
    assert entry.tunnel is not None and exit_.tunnel is not None
    up = [b"up %d" % number for number in range(200)]
    down = [b"down %d" % number for number in range(200)]
    for one, other in zip(up, down, strict=True):
        assert entry.tunnel.send(one) and exit_.tunnel.send(other)
    run_greenlets_until("all came", lambda: exit_.data == up and entry.data == down)


def test_a_frame_for_many_clients_crosses_once(nodes: Nodes) -> None:
    pairs = [nodes.tunnel() for _ in range(20)]
    frame = b"x" * 100_000
    other = b"y"
    for _, exit_ in pairs:
        assert exit_.tunnel is not None
        exit_.tunnel.send(frame)
    queue = pairs[0][1].tunnel._queue  # type: ignore[union-attr]
    assert queue.size_bytes < 2 * len(frame)
    for _, exit_ in pairs:
        assert exit_.tunnel is not None
        exit_.tunnel.send(other)
    run_greenlets_until(
        "all came", lambda: all(entry.data == [frame, other] for entry, _ in pairs)
    )
    assert queue.size_bytes == 0


@pytest.mark.parametrize("is_entry", [True, False])
def test_an_end_comes_behind_all_that_was_sent(nodes: Nodes, is_entry: bool) -> None:
    entry, exit_ = nodes.tunnel()
    here, there = (entry, exit_) if is_entry else (exit_, entry)
    assert here.tunnel is not None
    here.tunnel.send(b"last words")
    here.tunnel.close()
    here.tunnel.close()
    assert not here.tunnel.send(b"too late")
    run_greenlets_until("it ended", lambda: there.ends == [(None, False)])
    assert there.data == [b"last words"] and here.ends == []
    assert nodes.link().call(b"still there") == b"STILL THERE"


def test_a_refused_connection_gets_the_error_of_the_owner(nodes: Nodes) -> None:
    nodes.exits.refusal = Draining("going away", hint="Connect again")
    entry = User()
    nodes.link().open_tunnel(entry, OpenTunnel("192.0.2.7", False, HEAD))
    run_greenlets_until("it was refused", lambda: bool(entry.ends))
    (error, is_lost), = entry.ends
    assert isinstance(error, Draining) and error.message == "going away" and not is_lost


def test_tunnels_beyond_the_bound_are_refused_on_both_sides(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.tunnel()
    monkeypatch.setattr(limits, "CLUSTER_TUNNELS", 1)
    with pytest.raises(Unavailable, match="Too many connections"):
        nodes.link().open_tunnel(User(), OpenTunnel("", False, HEAD))
    second = Links(A, nodes.clock, SystemRandom())
    entry = User()
    second.find(nodes.url, B.public, "1").open_tunnel(entry, OpenTunnel("", False, HEAD))
    run_greenlets_until("it was refused", lambda: bool(entry.ends))
    assert isinstance(entry.ends[0][0], Unavailable)
    second.close()


def test_a_client_that_sends_faster_than_its_shard_reads_is_throttled(nodes: Nodes) -> None:
    entry, exit_ = nodes.tunnel()
    assert entry.tunnel is not None and exit_.tunnel is not None
    chunk, sent = b"x" * 65_536, 0
    while not entry.tunnel.is_full:
        assert entry.tunnel.send(chunk)
        sent += len(chunk)
    assert sent == limits.CLUSTER_WINDOW_BYTES
    run_greenlets_until("all came", lambda: sum(map(len, exit_.data)) == sent)
    gevent.sleep(0.1)
    assert entry.tunnel.is_full and not entry.was_writable
    exit_.tunnel.take(sent // 2)
    run_greenlets_until("it may send again", lambda: entry.was_writable == 1)
    assert not entry.tunnel.is_full


# --- Peers that fail -----------------------------------------------------------------------


def test_a_silent_port_ends_tunnels_and_calls_within_seconds(nodes: Nodes) -> None:
    entry, exit_ = nodes.tunnel()
    call = outcome(lambda: nodes.link().call(b"wait"))
    gevent.sleep(0)
    for _ in range(10):  # beats keep it
        nodes.clock.advance(limits.CLUSTER_BEAT_S)
        nodes.links.tick()
        heard_s = nodes.clock.monotonic_s()
        run_greenlets_until("a beat", lambda: nodes.link().heard_s >= heard_s)  # noqa: B023
    nodes.clock.advance(limits.CLUSTER_DEAD_S + 0.1)
    nodes.links.tick()
    nodes.port.tick()
    assert entry.ends == [(None, True)] and exit_.ends == [(None, True)]
    gevent.joinall([call], timeout=WAIT_S)
    assert isinstance(call.value, Unavailable)
    assert nodes.link().call(b"a new link") == b"A NEW LINK"
    nodes.release.set()


def test_a_worker_that_was_replaced_ends_the_tunnels_of_the_one_before(nodes: Nodes) -> None:
    """The port has the same key and address then, and ZeroMQ connects again by itself."""
    entry, _ = nodes.tunnel()
    nodes.port.close()
    nodes.port = nodes.new_port()
    assert nodes.links.find(nodes.url, B.public, "1") is nodes.link()

    def ended() -> bool:
        nodes.links.tick()
        gevent.sleep(0.05)
        return entry.ends == [(None, True)]

    run_greenlets_until("the tunnel has ended", ended)
    assert nodes.link().call(b"again") == b"AGAIN"


class Proxy:
    """A TCP connection between the nodes, which a test can cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.listener = gevent.socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = int(self.listener.getsockname()[1])
        self._open: list[Any] = []
        self.is_frozen = False
        self._acceptor = gevent.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            server = gevent.socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            gevent.spawn(self._pump, client, server)
            gevent.spawn(self._pump, server, client)

    def _pump(self, source: Any, target: Any) -> None:
        try:
            while data := source.recv(65_536):
                while self.is_frozen:
                    gevent.sleep(0.01)
                target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()

    def close(self) -> None:
        self._acceptor.kill()
        self.cut()

    def cut(self) -> None:
        for sock in self._open:
            sock.close()
        self._open.clear()


@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_byte_is_missing_in_the_middle_when_the_network_is_cut(
    nodes: Nodes, is_frozen: bool
) -> None:
    """ZeroMQ connects again by itself, and may have lost what was on its way."""
    proxy = Proxy(nodes.port_number)
    nodes.url = f"tcp://127.0.0.1:{proxy.port}"
    entry, exit_ = nodes.tunnel()
    assert entry.tunnel is not None and exit_.tunnel is not None
    sent = [b"%d" % number for number in range(3_000)]
    for number, data in enumerate(sent):
        entry.tunnel.send(data)
        exit_.tunnel.send(data)
        if number == 499:
            run_greenlets_until("the first came", lambda: len(entry.data) == len(exit_.data) == 500)
        if number % 50 == 0:
            gevent.sleep(0.001)
        if number == 1_000:
            proxy.is_frozen = is_frozen
        if number == 1_500 and not is_frozen:
            proxy.cut()

    def ended() -> bool:
        nodes.clock.advance(0.05)
        nodes.links.tick()
        nodes.port.tick()
        return bool(entry.ends and exit_.ends)

    run_greenlets_until("both ends know it", ended)
    assert entry.data == sent[: len(entry.data)] and exit_.data == sent[: len(exit_.data)]
    assert len(entry.data) >= 500 and len(exit_.data) >= 500
    assert entry.ends == exit_.ends == [(None, True)]
    proxy.is_frozen = False
    assert nodes.link().call(b"again") == b"AGAIN"
    proxy.close()


def test_a_missing_parcel_ends_the_link(nodes: Nodes) -> None:
    entry, exit_ = nodes.tunnel()
    assert exit_.tunnel is not None
    exit_.tunnel._queue._number += 1  # as if ZeroMQ had lost one
    exit_.tunnel.send(b"behind the gap")
    run_greenlets_until("the entry has ended", lambda: entry.ends == [(None, True)])
    assert entry.data == []
    entry, exit_ = nodes.tunnel()
    assert entry.tunnel is not None
    entry.tunnel._queue._number += 1
    entry.tunnel.send(b"behind the gap")
    run_greenlets_until("both have ended", lambda: exit_.ends and entry.ends == [(None, True)])
    assert exit_.data == []


def test_a_peer_that_does_not_read_fills_a_bounded_queue(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node is frozen: its sockets take what fits, and the rest stays with the sender."""
    monkeypatch.setattr(limits, "CLUSTER_HWM", 2)
    entry, exit_ = nodes.tunnel()
    assert exit_.tunnel is not None
    nodes.link()._socket._watcher.stop()
    chunk, sent = 100_000, 0
    for _ in range(10_000):
        if not exit_.tunnel.send(bytes(chunk)):
            break
        sent += 1
        gevent.sleep(0)
    queue = exit_.tunnel._queue
    assert exit_.tunnel.is_full and queue.size_bytes <= limits.CLUSTER_QUEUE_BYTES + 2 * chunk
    assert not exit_.was_writable
    link = nodes.link()
    link._socket._watcher.start(link._socket._read)
    link._socket._look_again()
    run_greenlets_until("it is writable", lambda: exit_.was_writable == 1)
    run_greenlets_until("all came", lambda: len(entry.data) == sent)


def test_parcels_and_envelopes_of_a_later_version_are_dropped(nodes: Nodes) -> None:
    link = nodes.link()
    link._queue.put(99, 0, b"?")
    assert link.call(b"hello") == b"HELLO"
    raw = envelopes.encode([2, "s", 1, [], "a field of later"])
    assert envelopes.decode_parcel(raw) is None
    grown = envelopes.encode([1, "s", 1, [[0, [0], b"", "new"]], "a field of later"])
    assert envelopes.decode_parcel(grown) is not None
    assert link._transmit(raw)
    gevent.sleep(0.1)
    assert link.call(b"hello") == b"HELLO"


def test_an_idle_link_is_closed_by_its_process(nodes: Nodes) -> None:
    nodes.link().call(b"hello")
    nodes.clock.advance(limits.CLUSTER_IDLE_S + 1)
    nodes.link().heard_s = nodes.clock.monotonic_s()
    nodes.links.tick()
    assert len(nodes.links) == 0
    run_greenlets_until("the port knows", lambda: nodes.port.nodes == [])


# --- Addresses -----------------------------------------------------------------------------


def test_each_worker_has_a_port_of_its_own() -> None:
    assert worker_endpoint("tcp://game-1.internal:4400", "1") == "tcp://game-1.internal:4400"
    assert worker_endpoint("tcp://[fd00::1]:4400", "3") == "tcp://[fd00::1]:4402"
    assert bind_endpoint("::", "tcp://game:4400", "2") == "tcp://[::]:4401"
    for url, worker in (("http://a:1", "1"), ("tcp://a", "1"), ("tcp://a:65535", "2")):
        with pytest.raises(ValueError, match="no address"):
            worker_endpoint(url, worker)


def test_a_malformed_address_of_the_registry_is_one_unavailable_node(nodes: Nodes) -> None:
    for url, key in (("nonsense", B.public), (nodes.url, "short"), ("tcp://a b:1", B.public)):
        with pytest.raises(Unavailable, match="cannot be used"):
            nodes.links.find(url, key, "1")
    assert len(nodes.links) == 0


def test_a_taken_port_is_an_error(nodes: Nodes) -> None:
    with pytest.raises(OSError, match="in use"):
        nodes.new_port()
    assert nodes.link().call(b"hello") == b"HELLO"
