"""Start cursors of clients, as a state machine: pulls, connects, kills of every kind, boots.

The parts are the product's, the processes are objects, the clock is by hand. The rule: a client
that connects within a minute of its pull begins at or below its cursor, or it must resync.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pylon import limits
from pylon.changelog import hint_journal
from pylon.clock import ManualClock
from pylon.errors import ResyncRequired
from tests.support.examples import count_examples
from tests.support.hint_server import CAPACITY, HTTP_WORKERS, Server


@dataclass
class Client:
    """A published client: connected, or somewhere between its close and its next connect."""

    key: int
    cursor: int = 0
    is_connected: bool = False
    good_until_s: float = 0.0  # on a clock that counts over boots


@pytest.fixture(autouse=True)
def small_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint_journal.read_journal, "__defaults__", (CAPACITY,))
    monkeypatch.setattr(hint_journal.make_journal, "__defaults__", (CAPACITY,))


class Lives(RuleBasedStateMachine):
    """Whoever dies, no client begins behind what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.temp = tempfile.TemporaryDirectory(prefix="start-cursors-")
        self.server = Server(Path(self.temp.name))
        self.now_s = 0.0
        self.clients = [Client(1), Client(1), Client(2), Client(3)]  # two are tabs of a session
        self.commits: list[tuple[float, int]] = []
        for client in self.clients:
            self._pull(client, 0)
            self._join(client)

    # --- Time and writes ----------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 16.0, 40.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.server.clock.advance(seconds)
        self.server.marks.record(self.server.log.head)
        # The log keeps `LOG_MIN_AGE_S` at the least.
        old = [seq for at_s, seq in self.commits if at_s < self.now_s - limits.LOG_MIN_AGE_S]
        if old:
            self.server.log.pruned_to = max(self.server.log.pruned_to, old[-1])

    @rule(count=st.integers(1, 1_500))
    def write(self, count: int) -> None:
        self.server.log.head += count
        self.commits.append((self.now_s, self.server.log.head))
        self.server.marks.record(self.server.log.head)
        for client in self.clients:
            if client.is_connected:
                client.cursor = self.server.log.head

    # --- Clients --------------------------------------------------------------------------

    def _join(self, client: Client) -> None:
        client.is_connected = True
        client.cursor = self.server.log.head

    def _drop(self, client: Client) -> None:
        if client.is_connected:
            client.is_connected = False
            client.good_until_s = self.now_s + limits.HINT_TTL_S

    def _pull(self, client: Client, worker: int) -> None:
        """Page by page, as `pylon.api.sync.pull` notes it."""
        publish, head = self.server.tellers[worker].publish, self.server.log.head
        if client.cursor + 1 < self.server.log.oldest_seq() or any(
            low < client.cursor < high for low, high in self.server.log.void_ranges
        ):
            client.cursor = head  # 410, and a snapshot
            publish(client.key, head)
        while head - client.cursor > limits.PULL_PAGE_EVENTS:
            client.cursor += limits.PULL_PAGE_EVENTS
            publish(client.key, client.cursor)
        publish(client.key, client.cursor)
        client.cursor = head
        client.good_until_s = self.now_s + limits.HINT_TTL_S

    @rule(which=st.sampled_from(range(4)))
    def drop(self, which: int) -> None:
        self._drop(self.clients[which])

    @rule(which=st.sampled_from(range(4)), worker=st.integers(0, HTTP_WORKERS - 1))
    def pull(self, which: int, worker: int) -> None:
        if not self.clients[which].is_connected:
            self._pull(self.clients[which], worker)

    @rule(which=st.sampled_from(range(4)), worker=st.integers(0, HTTP_WORKERS - 1))
    def pull_whose_answer_is_lost(self, which: int, worker: int) -> None:
        client = self.clients[which]
        behind = self.server.log.head - client.cursor
        if not client.is_connected and self.now_s < client.good_until_s and (
            behind <= limits.PULL_PAGE_EVENTS
        ):
            self.server.tellers[worker].publish(client.key, client.cursor)

    @rule(which=st.sampled_from(range(4)), worker=st.integers(0, HTTP_WORKERS - 1),
          is_hinted=st.booleans())
    def pull_whose_worker_dies(self, which: int, worker: int, is_hinted: bool) -> None:
        client = self.clients[which]
        if not client.is_connected:
            if is_hinted:
                self.server.tellers[worker].publish(client.key, self.server.log.head)
            self.server.start_http(worker)

    @rule(which=st.sampled_from(range(4)), hub=st.integers(0, 1))
    def connect(self, which: int, hub: int) -> None:
        client = self.clients[which]
        if client.is_connected:
            return
        try:
            found = self.server.start_cursor(hub, client.key)
        except ResyncRequired:
            return
        self.server.log.span().check(found)
        if self.now_s < client.good_until_s:
            assert found <= client.cursor
        self._join(client)

    @rule(worker=st.integers(0, HTTP_WORKERS - 1), count=st.integers(1, 2 * CAPACITY))
    def pull_by_strangers(self, worker: int, count: int) -> None:
        """More than a ring holds."""
        for key in range(100, 100 + count):
            self.server.tellers[worker].publish(key, self.server.log.head)

    @rule(hub=st.integers(0, 1))
    def connect_without_a_pull(self, hub: int) -> None:
        """What is sent can be told."""
        try:
            found = self.server.start_cursor(hub, 10_000)
        except ResyncRequired:
            return
        self.server.log.span().check(found)

    # --- Deaths -----------------------------------------------------------------------------

    @rule(worker=st.integers(0, HTTP_WORKERS - 1))
    def kill_http(self, worker: int) -> None:
        self.server.start_http(worker)

    @rule(hub=st.integers(0, 1), worker=st.sampled_from([None, *range(HTTP_WORKERS)]))
    def kill_hub(self, hub: int, worker: int | None) -> None:
        if worker is not None:
            self.server.start_http(worker)
        self.server.start_hub(hub)
        for client in self.clients[hub::2]:
            self._drop(client)

    def _start(self, down_s: float) -> None:
        for client in self.clients:
            self._drop(client)
        self.now_s += down_s
        self.server.start()

    @rule()
    def restart(self) -> None:
        self.server.stop()
        self._start(0.0)

    @rule(clears_runtime=st.booleans(), down_s=st.sampled_from([0.0, 3.0]))
    def kill_server(self, clears_runtime: bool, down_s: float) -> None:
        self.server.kill(clears_runtime=clears_runtime)
        self.server.clock.advance(down_s)
        self._start(down_s)

    @rule(is_orderly=st.booleans(), down_s=st.sampled_from([0.0, 10.0]))
    def reboot(self, is_orderly: bool, down_s: float) -> None:
        if is_orderly:
            self.server.stop()
        else:
            self.server.kill(clears_runtime=True)
        self.server.boot += 1
        self.server.clock = ManualClock()
        self.server.clock.advance(down_s / 2)
        self._start(down_s)

    @rule()
    def jump_the_wall_clock(self) -> None:
        self.server.clock.jump(3_600 if self.server.runs % 2 else -3_600)

    @rule(lost=st.integers(0, 500))
    def restore(self, lost: int) -> None:
        """A new epoch. Who has seen what is lost must resync."""
        self.server.stop()
        log = self.server.log
        first_seqs = [first_seq for _, first_seq in log.void_ranges]
        low = max(log.pruned_to, log.head - lost, *first_seqs)
        high = log.head + 10**9
        log.void_ranges.append((low, high))
        log.head = high
        self.commits = [*((a, min(s, low)) for a, s in self.commits), (self.now_s, high)]
        self._start(0.0)
        for client in self.clients:
            if client.cursor > low:
                # Within the first seconds it is told so; see `start_cursors` for one whose
                # session has pulled again before it comes.
                client.good_until_s = 0.0

    def teardown(self) -> None:
        self.server.kill(clears_runtime=False)
        self.temp.cleanup()


Lives.TestCase.settings = settings(max_examples=count_examples(30), stateful_step_count=30)
TestLives = Lives.TestCase


def test_a_young_hub_does_not_guess(tmp_path: Path) -> None:
    """The case that was reported: hub and HTTP worker die within half a second."""
    server = Server(tmp_path)
    server.log.head = 5_000
    server.tellers[0].publish(1, 5_000)
    server.log.head = 25_000
    server.start_hub(0)
    assert server.start_cursor(0, 1) == 5_000
    server.start_http(0)
    server.start_hub(0)
    server.tellers[1].publish(1, 25_000)  # what another worker tells is not the whole answer
    assert server.start_cursor(0, 1) <= 5_000
    assert server.start_cursor(1, 2) <= 5_000


def test_without_hints_the_window_is_replayed(tmp_path: Path) -> None:
    server = Server(tmp_path)
    for number in range(1, 200):
        server.clock.advance(1)
        server.log.head = 100 * number
        server.marks.record(server.log.head)
    server.tellers[0].publish(1, server.log.head)
    server.kill(clears_runtime=True)
    server.start()
    server.tellers[0].publish(1, server.log.head)  # another tab: no reason to trust it
    for key in (1, 2):
        assert 100 * (199 - 85) <= server.start_cursor(0, key) <= 100 * (199 - 74)
    server.clock.advance(1.25 * limits.HINT_WINDOW_S)
    server.tellers[0].publish(1, server.log.head)
    server.start_hub(0)
    assert server.start_cursor(0, 1) == server.log.head


def test_after_a_restore_only_the_first_seconds_refuse(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.log.head = 1_000
    server.tellers[0].publish(1, 1_000)
    server.stop()
    server.log.void_ranges.append((400, 10**9))
    server.log.head = 10**9
    server.start()
    with pytest.raises(ResyncRequired) as refused:
        server.start_cursor(0, 1)
    assert refused.value.details == {"oldest_seq": 10**9 + 1}, "the log as it is goes on there"
    server.tellers[0].publish(1, 10**9)  # it has pulled again, as it was told
    assert server.start_cursor(0, 1) == 10**9
    server.clock.advance(limits.EPOCH_RESYNC_S)
    assert server.start_cursor(0, 2) <= 400


def test_a_start_uses_saved_hints_once_and_removes_their_former_file(tmp_path: Path) -> None:
    server = Server(tmp_path)
    former = tmp_path / "app.db.notes"
    former.touch()
    server.log.head = 1_000
    server.tellers[0].publish(1, 1_000)
    server.stop()
    assert (tmp_path / "app.db.hints").exists()
    server.start()
    assert server.start_cursor(0, 1) == 1_000
    assert not (tmp_path / "app.db.hints").exists()
    assert not former.exists()
