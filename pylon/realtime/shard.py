"""One shard: a simulation, its subscribers, its inputs, and its ticks. No sockets, no waiting.

Time is handed in, and whoever runs the shard calls `step` when `due_s` has come. A tick counts
up, applies the inputs that wait in the order of their arrival, advances the state, sends every
subscriber its snapshot, and asks whether it is over. Between ticks nothing moves.

A shard without subscribers and inputs sleeps (unless its kind ticks when empty), and stops
after `idle_ticks_before_shutdown` ticks' time. The step is fixed, so that a replay gives the
same states; a shard that is more than one tick behind skips what it missed rather than hurry.

Invariants: subscribers are removed by connection, never by sid. An exception of the app's
methods stops this shard, with its traceback kept, and goes no further; an input that fails is
refused to its sender, and the simulation goes on. A stopped shard sends nothing and takes
nothing. Called by `workers.shards` and `pylon.realtime.replay`. Source: spec/realtime.md §4.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from pylon.auth.context import AuthContext
from pylon.errors import (
    InputQueueFull,
    InputRejected,
    PylonError,
    SubscribeFailed,
    SubscribeRefused,
)
from pylon.realtime.kinds import Kind
from pylon.realtime.simulation import Saved, Simulation
from pylon.realtime.snapshots import Ack, Format, View, Wire
from pylon.realtime.state import ShardContext, SimState

FINISHED: Final = 1000
FAILED: Final = 1011

_UNGUARDED: Final[AbstractContextManager[Any]] = nullcontext()


class TickOverrun(BaseException):
    """Raised into a tick that takes too long. No `Exception`, so that an app's own
    ``except Exception`` does not hold it up."""


class Sink(Protocol):
    """One connection of a subscriber."""

    sid: str
    auth: AuthContext
    wire: Wire
    delta: bool  # wants deltas
    acks: bool  # wants acks

    def send(self, frame: bytes) -> None:
        """Send or queue a frame. Never blocks; may unsubscribe the sink."""

    def reject(self, client_seq: int | None, reason: str) -> None:
        """Tell that an input was refused."""

    def end(self, code: int, reason: str) -> None:
        """The shard lets go of it: close the connection."""


class Recorder(Protocol):
    """Writes down what a replay needs (`pylon.realtime.replay`)."""

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None:
        """After the tick `tick`."""

    def left(self, tick: int, sid: str) -> None:
        """After the tick `tick`."""

    def ticked(
        self, simulation: Simulation, dt_s: float, inputs: Sequence[tuple[str, Any]]
    ) -> None:
        """The simulation has done a tick."""

    def stopped(self, simulation: Simulation) -> None:
        """There will be no more."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a call of `step` did."""

    ticked: bool
    late_s: float = 0.0
    inputs: int = 0
    frames: int = 0


@dataclass(slots=True)
class _Place:
    """A connection's own state."""

    ack: Ack | None = None
    base: Any = None  # the snapshot, as plain values, that its next delta starts from
    has_base: bool = False


@dataclass(frozen=True, slots=True)
class _Input:
    """An input that waits for its tick."""

    sid: str
    sink: Sink | None  # None: it came over HTTP
    value: Any
    client_seq: int | None
    server_seq: int


class Shard:
    """A running simulation."""

    __slots__ = (
        "_asleep_s", "_away", "_idle_ticks", "_inputs", "_next_s", "_places", "_recorder",
        "_reserved", "_server_seq", "_shares", "_sids", "_simulation", "_was_s", "id", "kind",
        "running", "stopped_because", "traceback",
    )

    def __init__(
        self, kind: Kind, context: ShardContext, now_s: float, *,
        recorder: Recorder | None = None, saved: Saved | None = None,
    ) -> None:
        """Make the state; the first tick is due at once.

        Args:
            saved: go on from here.
        """
        self.id = context.id
        self.kind = kind
        self.running = True
        self.stopped_because: str | None = None
        self.traceback: str | None = None
        self._recorder = recorder
        self._shares = kind.state.snapshot_for is SimState.snapshot_for
        self._places: dict[Sink, _Place] = {}
        self._sids: dict[str, int] = {}  # connections of each subscriber
        self._away: dict[str, float] = {}  # whose seat is kept, until when
        self._reserved: dict[str, float] = {}  # for whom one is kept who was never here
        self._inputs: list[_Input] = []
        self._server_seq = 0
        self._idle_ticks = 0
        self._simulation: Simulation | None = None  # None: it could not be made
        self._next_s = self._was_s = self._asleep_s = now_s
        try:
            self._simulation = Simulation(kind, context, saved)
        except Exception as ex:  # noqa: BLE001  the app's code
            self._fail(ex)

    # --- Looking at it -------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """How many there have been."""
        return 0 if self._simulation is None else self._simulation.tick

    @property
    def subscribers(self) -> int:
        """How many there are by sid."""
        return len(self._sids)

    @property
    def seats_taken(self) -> int:
        """Subscribers, those who may come back, and those for whom a seat is kept."""
        return len(self._sids) + len(self._away) + len(self._reserved)

    @property
    def input_queue(self) -> int:
        """Inputs that wait for the next tick."""
        return len(self._inputs)

    def due_s(self) -> float | None:
        """When `step` wants to be called; None: not before something happens."""
        if not self.running:
            return None
        if self._is_awake():
            return self._next_s
        times = [*self._away.values(), *self._reserved.values()]
        idle_ticks = self.kind.config.idle_ticks_before_shutdown
        if idle_ticks and not self._places and not times:
            times.append(self._asleep_s + idle_ticks * self.kind.interval_s)
        return min(times, default=None)

    # --- Subscribers ---------------------------------------------------------------------

    def subscribe(self, sink: Sink, now_s: float, *, has_seat: bool = False) -> None:
        """Let a connection in, and send it the snapshot as it is.

        Args:
            has_seat: it has shown that the seat of its sid is its own; the simulation is not
                asked again.

        Raises:
            SubscribeRefused: by the simulation.
            SubscribeFailed: stopped, or full.
        """
        simulation = self._running()
        sid = sink.sid
        try:
            if not has_seat or not self.has_seat(sid):
                simulation.state.authorize_subscribe(sid, sink.auth)
            is_new = sid not in self._sids and sid not in self._away
            if is_new and sid not in self._reserved:
                self._check_room(1)
            was_awake = self._is_awake()
            self._away.pop(sid, None)
            self._reserved.pop(sid, None)
            self._sids[sid] = self._sids.get(sid, 0) + 1
            place = self._places[sink] = _Place()
            if is_new:
                if self._recorder is not None:
                    self._recorder.joined(simulation.tick, sid, sink.auth)
                simulation.state.joined(sid, sink.auth)
            if not was_awake:
                self._wake(now_s)
            if simulation.tick:  # else the first tick is due, and brings the first snapshot
                self._send_whole(sink, place, self._view(simulation, sid))
        except PylonError:
            raise
        except Exception as ex:
            self._fail(ex)
            raise SubscribeFailed("shard is stopped") from ex

    def unsubscribe(self, sink: Sink, now_s: float) -> None:
        """Forget a connection. Does nothing for one that is not here."""
        if self._places.pop(sink, None) is None:
            return
        sid = sink.sid
        left = self._sids[sid] - 1
        if left:
            self._sids[sid] = left
        else:
            del self._sids[sid]
            keep_s = self.kind.config.allow_reconnection_s
            if keep_s and self.running:
                self._away[sid] = now_s + keep_s
            else:
                self._leave(sid)
        if not self._places:
            self._asleep_s = now_s

    def has_seat(self, sid: str) -> bool:
        """Whether `sid` is here, or a seat is kept for it."""
        return sid in self._sids or sid in self._away or sid in self._reserved

    def reserve(self, sids: Sequence[str], until_s: float) -> None:
        """Keep a seat for each of them (a match), until they come or the time is over.

        Raises:
            SubscribeFailed: stopped, or there is no room for all of them.
        """
        self._running()
        wanted = [sid for sid in dict.fromkeys(sids) if not self.has_seat(sid)]
        self._check_room(len(wanted))
        for sid in wanted:
            self._reserved[sid] = until_s

    # --- Inputs --------------------------------------------------------------------------

    def submit(
        self, sid: str, auth: AuthContext, raw: bytes | msgspec.Raw, now_s: float, *,
        sink: Sink | None = None, client_seq: int | None = None, format: Format = Format.JSON,  # noqa: A002
    ) -> int:
        """Validate an input and queue it for the next tick.

        Args:
            raw: the input alone, encoded in `format`.
            sink: the connection it came on, which gets the ack.

        Returns:
            Its server seq: 1, 2, 3 … for this shard, refused ones of a full queue included.

        Raises:
            SubscribeRefused: `sid` has no live subscription.
            InputRejected: not of the declared type, or refused by the simulation.
            InputQueueFull, SubscribeFailed (stopped).
        """
        simulation = self._running()
        if sid not in self._sids:
            raise SubscribeRefused(f'subscriber "{sid}" is not attached to this shard')
        decoder = self.kind.json_input if format is Format.JSON else self.kind.msgpack_input
        try:
            value = decoder.decode(raw)
        except msgspec.MsgspecError as ex:
            raise InputRejected(f"invalid input {format.name}: {ex}") from ex
        except RecursionError as ex:
            raise InputRejected(f"invalid input {format.name}: nested too deeply") from ex
        try:
            simulation.state.authorize_input(sid, auth, value)
        except PylonError:
            raise
        except Exception as ex:
            self._fail(ex)
            raise SubscribeFailed("shard is stopped") from ex
        self._server_seq += 1
        most = self.kind.config.max_input_queue
        if most and len(self._inputs) >= most:
            raise InputQueueFull("shard input queue is full", hint=f"{most} inputs wait")
        if not self._is_awake():
            self._wake(now_s)
        self._inputs.append(_Input(sid, sink, value, client_seq, self._server_seq))
        return self._server_seq

    # --- Time ----------------------------------------------------------------------------

    def step(self, now_s: float, guard: AbstractContextManager[Any] = _UNGUARDED) -> Step:
        """Do what is due: a tick, the end of kept seats, or the end of an idle shard.

        Args:
            guard: entered around the app's code of a tick, and around nothing else. It may
                raise `TickOverrun` within.
        """
        simulation = self._simulation
        if simulation is None or not self.running or not self._let_go_of_seats(now_s):
            return Step(ticked=False)
        if not self._is_awake():
            due_s = self.due_s()
            if due_s is not None and now_s >= due_s and not self.seats_taken:
                self.stop(FINISHED, "idle")
            return Step(ticked=False)
        if now_s < self._next_s:
            return Step(ticked=False)
        late_s = now_s - self._next_s
        inputs, self._inputs = self._inputs, []
        dt_s = self._step_of(now_s)
        try:
            frames = self._run_tick(simulation, inputs, dt_s, guard)
        except (Exception, TickOverrun) as ex:  # noqa: BLE001  the app's code
            self._fail(ex)
            return Step(True, late_s, len(inputs))
        if self.running and not inputs and not self._sids:
            self._idle_ticks += 1
            limit = self.kind.config.idle_ticks_before_shutdown
            if limit and self._idle_ticks >= limit:
                self.stop(FINISHED, "idle")
        else:
            self._idle_ticks = 0
        return Step(True, late_s, len(inputs), frames)

    def save(self) -> Saved | None:
        """The shard at rest, or None where its state keeps nothing, or has failed or ended."""
        simulation = self._simulation
        if simulation is None or self.traceback is not None:
            return None
        try:
            return simulation.save()
        except Exception as ex:  # noqa: BLE001  the app's code
            self._fail(ex)
            return None

    def stop(self, code: int, reason: str) -> None:
        """Take and send nothing more, and close every connection. Later calls do nothing."""
        if not self.running:
            return
        self.running = False
        self.stopped_because = reason
        for sink in list(self._places):
            sink.end(code, reason)
        self._places.clear()
        self._sids.clear()
        self._away.clear()
        self._reserved.clear()
        self._inputs.clear()
        if self._recorder is not None and self._simulation is not None:
            self._recorder.stopped(self._simulation)

    # --- Within --------------------------------------------------------------------------

    def _is_awake(self) -> bool:
        if self._inputs:
            return True
        if self.kind.is_event_driven:
            return self.tick == 0 and bool(self._places)
        return bool(self._places) or self.kind.config.tick_when_empty

    def _wake(self, now_s: float) -> None:
        self._next_s = max(self._next_s, now_s)

    def _step_of(self, now_s: float) -> float:
        """When the tick after this one is due is settled; the simulated time of this one."""
        interval_s = self.kind.interval_s
        if self.tick == 0:
            dt_s = 0.0
        elif self.kind.is_event_driven:
            dt_s = round(now_s - self._was_s, 6)
        else:
            dt_s = interval_s
        self._was_s = now_s
        behind_s = now_s - self._next_s
        if self.kind.is_event_driven or behind_s > interval_s:
            self._next_s = now_s
        self._next_s += interval_s
        return dt_s

    def _run_tick(
        self, simulation: Simulation, inputs: list[_Input], dt_s: float,
        guard: AbstractContextManager[Any],
    ) -> int:
        told = [(item.sid, item.value) for item in inputs]
        with guard:
            refused = simulation.advance(told, dt_s)
            views = self._views(simulation)
            is_finished = simulation.state.is_finished()
        if self._recorder is not None:
            self._recorder.ticked(simulation, dt_s, told)
        for item, reason in zip(inputs, refused, strict=True):
            place = None if item.sink is None else self._places.get(item.sink)
            if place is None or item.sink is None:
                continue
            if reason is None:
                place.ack = Ack(item.client_seq, item.server_seq, simulation.tick)
            else:
                item.sink.reject(item.client_seq, reason)
        frames = self._send_views(simulation.tick, views)
        if is_finished:
            self.stop(FINISHED, "finished")
        return frames

    def _views(self, simulation: Simulation) -> dict[str, View]:
        """What each subscriber sees, by sid; one for all where the simulation says no more."""
        if self._shares and self._sids:
            return dict.fromkeys(self._sids, self._view(simulation, ""))
        return {sid: self._view(simulation, sid) for sid in self._sids}

    def _send_views(self, tick: int, views: dict[str, View]) -> int:
        every = self.kind.config.delta_full_every
        whole = every > 0 and tick % every == 0
        frames = 0
        for sink, place in list(self._places.items()):
            view = views[sink.sid]
            if not sink.delta:
                if sink.acks:
                    sink.send(view.frame_with_ack(sink.wire, place.ack))
                else:
                    sink.send(view.frame(sink.wire))
            elif whole or not place.has_base:
                self._send_whole(sink, place, view)
            elif not self._send_delta(sink, place, view):
                continue
            frames += 1
        return frames

    def _send_whole(self, sink: Sink, place: _Place, view: View) -> None:
        if sink.delta:
            place.base, place.has_base = view.plain, True
        if sink.acks:
            sink.send(view.frame_with_ack(sink.wire, place.ack))
        else:
            sink.send(view.frame(sink.wire))

    def _send_delta(self, sink: Sink, place: _Place, view: View) -> bool:
        base, place.base = place.base, view.plain
        has_news = place.ack is not None and place.ack.tick == view.tick
        if sink.acks and has_news:
            sink.send(view.delta_frame_with_ack(base, sink.wire, place.ack))
            return True
        frame = view.delta_frame(base, sink.wire)
        if frame is not None:
            sink.send(frame)
        return frame is not None

    def _view(self, simulation: Simulation, sid: str) -> View:
        state = simulation.state
        seen = state.snapshot() if self._shares else state.snapshot_for(sid)
        return View(simulation.tick, seen)

    def _let_go_of_seats(self, now_s: float) -> bool:
        """End the seats whose time is over; whether the shard runs (still)."""
        for sid in [sid for sid, until_s in self._reserved.items() if until_s <= now_s]:
            del self._reserved[sid]
        for sid in [sid for sid, until_s in self._away.items() if until_s <= now_s]:
            self._away.pop(sid, None)
            self._leave(sid)
        return self.running

    def _leave(self, sid: str) -> None:
        simulation = self._simulation
        if simulation is None or not self.running:
            return
        if self._recorder is not None:
            self._recorder.left(simulation.tick, sid)
        try:
            simulation.state.left(sid)
        except Exception as ex:  # noqa: BLE001  the app's code
            self._fail(ex)

    def _running(self) -> Simulation:
        if self._simulation is None or not self.running:
            raise SubscribeFailed("shard is stopped", hint=self.stopped_because)
        return self._simulation

    def _check_room(self, wanted: int) -> None:
        most = self.kind.config.max_subscribers
        if most and self.seats_taken + wanted > most:
            raise SubscribeFailed(
                "shard is at max subscribers", hint=f"There are {most}; come again later"
            )

    def _fail(self, error: BaseException) -> None:
        self.traceback = "".join(traceback.format_exception(error))
        self.stop(FAILED, f"the simulation failed: {type(error).__name__}")
