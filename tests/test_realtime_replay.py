"""pylon.realtime.replay: a recording gives the same states again, bit for bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.errors import InputRejected, RecordingInvalid
from pylon.realtime.kinds import Kind
from pylon.realtime.replay import Recording, replay
from pylon.realtime.shard import Shard
from pylon.realtime.snapshots import Format
from pylon.realtime.state import ShardContext, SimState
from tests.support.examples import count_examples
from tests.support.realtime import Client, Wire, registered


class Push(msgspec.Struct):
    force: float


class Bodies(SimState):
    """Floats, chance, time and rules: what a replay could get wrong."""

    Input = Push

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        self.at: dict[str, list[float]] = {}
        self.heard: list[float] = []

    def joined(self, sid: str, auth: Any) -> None:
        self.at[sid] = [self.random.random(), 0.0]

    def left(self, sid: str) -> None:
        del self.at[sid]

    def apply_input(self, sid: str, input: Push, received_at_s: float) -> None:  # noqa: A002
        if abs(input.force) > 5:
            raise InputRejected("too strong")
        self.at[sid][1] += input.force * self.random.uniform(0.9, 1.1)
        self.heard.append(received_at_s)

    def tick(self, dt_s: float) -> None:
        for body in self.at.values():
            body[0] += body[1] * dt_s + self.random.gauss(0, 0.01)

    def snapshot(self) -> Any:
        return {"at": self.at, "heard": self.heard[-3:]}

    def save(self) -> Any:
        return {"heard": self.heard, "at": {}}

    def restore(self, saved: Any) -> None:
        self.heard = saved["heard"]


def recorded(kind: Kind, path: Path, plan: list[Any], *, saved: Any = None) -> Shard:
    """Run a shard through a plan of joins, leaves, inputs and ticks."""
    context = ShardContext("sim:1", "sim", {"a": 1}, seed=99)
    shard = Shard(
        kind, context, 0.0, recorder=Recording(path, kind, context, saved), saved=saved
    )
    wire = Wire(Format.JSON)
    clients: dict[str, Client] = {}
    now_s = 0.0
    for step in plan:
        match step:
            case ("join", sid) if sid not in clients:
                clients[sid] = Client(sid, wire)
                shard.subscribe(clients[sid], now_s)
            case ("leave", sid) if sid in clients:
                shard.unsubscribe(clients.pop(sid), now_s)
            case ("push", sid, force) if sid in clients:
                client = clients[sid]
                raw = msgspec.json.encode({"force": force})
                shard.submit(sid, client.auth, raw, now_s, sink=client)
            case ("tick", after_s):
                now_s += after_s
                shard.step(now_s)
            case _:
                pass
    return shard


_sid = st.sampled_from(["ada", "bob"])
_plan = st.lists(
    st.one_of(
        st.tuples(st.just("join"), _sid), st.tuples(st.just("leave"), _sid),
        st.tuples(st.just("push"), _sid, st.floats(-6, 6)),
        st.tuples(st.just("tick"), st.floats(0.05, 0.3)),
    ),
    max_size=60,
)


@settings(max_examples=count_examples(60))
@given(plan=_plan, more=_plan, rate_hz=st.sampled_from([20, 0]))
def test_a_replay_ends_where_the_shard_ended(
    plan: list[Any], more: list[Any], rate_hz: float
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        registered(Bodies, tick_rate_hz=rate_hz, record_bytes=1_000_000) as kind,
    ):
        path = Path(folder) / "first.jsonl"
        first = recorded(kind, path, plan)
        saved = first.save()
        before = first._simulation.state.snapshot()
        first.stop(1001, "drain")
        outcome = replay(path, kind)
        assert (outcome.ended, outcome.differs_at, outcome.ticks) == ("end", None, first.tick)
        assert outcome.snapshot == before

        again = Path(folder) / "second.jsonl"
        second = recorded(kind, again, more, saved=saved)
        second.stop(1001, "drain")
        outcome = replay(again, kind)
        assert (outcome.ended, outcome.differs_at) == ("end", None)
        assert outcome.ticks == second.tick - first.tick


LONG = [("join", "ada"), *[("push", "ada", 1.5), ("tick", 0.05)] * 250]


def test_digests_are_compared_on_the_way(tmp_path: Path) -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        recorded(kind, tmp_path / "r", LONG).stop(1001, "drain")
        outcome = replay(tmp_path / "r", kind)
        assert (outcome.digests, outcome.inputs, outcome.ticks) == (3, 250, 250)


def test_another_behaviour_is_found_and_said_where(tmp_path: Path) -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        recorded(kind, tmp_path / "r", LONG).stop(1001, "drain")

    class Other(Bodies):
        def tick(self, dt_s: float) -> None:
            super().tick(dt_s * 1.0000001)

    with registered(Other) as kind:
        assert replay(tmp_path / "r", kind).differs_at == 100


def test_the_file_is_bounded_and_says_that_it_is_full(tmp_path: Path) -> None:
    with registered(Bodies, record_bytes=2_000) as kind:
        shard = recorded(kind, tmp_path / "r", LONG)
        shard.stop(1001, "drain")
        assert (tmp_path / "r").stat().st_size <= 2_000
        outcome = replay(tmp_path / "r", kind)
        assert (outcome.ended, outcome.differs_at) == ("full", None)
        assert 0 < outcome.inputs < 250


def test_a_line_cut_by_a_crash_ends_the_replay_there(tmp_path: Path) -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        path = tmp_path / "r"
        recorded(kind, path, LONG).stop(1001, "drain")
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:50]) + lines[50][:20])
        outcome = replay(path, kind)
        assert (outcome.ended, outcome.ticks) == ("cut", 48)


@pytest.mark.parametrize("text", [b"", b"{}\n", b"\xff\n", b'{"v":2}\n'])
def test_what_is_no_recording_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r").write_bytes(text)
    with registered(Bodies) as kind, pytest.raises(RecordingInvalid):
        replay(tmp_path / "r", kind)


@pytest.mark.parametrize(
    "line",
    [b"no\n", b'{"t":-5,"left":"ada"}\n', b'{"t":1,"inputs":[["ada",{"force":"x"}]]}\n'],
)
def test_a_line_that_makes_no_sense_is_refused_by_number(tmp_path: Path, line: bytes) -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        path = tmp_path / "r"
        recorded(kind, path, [("join", "ada")])._recorder.flush()
        path.write_bytes(path.read_bytes() + line)
        with pytest.raises(RecordingInvalid, match="line 3"):
            replay(path, kind)


def test_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        path = tmp_path / "r"
        recorded(kind, path, []).stop(1001, "drain")
        first, rest = path.read_text().split("\n", 1)
        path.write_text(json.dumps({**json.loads(first), "v": 2}) + "\n" + rest)
        with pytest.raises(RecordingInvalid, match="version 2"):
            replay(path, kind)


def test_a_full_disk_ends_the_recording_and_not_the_shard() -> None:
    with registered(Bodies, record_bytes=1_000_000) as kind:
        shard = recorded(kind, Path("/dev/full"), LONG)
        assert shard.running
        assert shard.tick == 250
        assert shard._recorder.error is not None
