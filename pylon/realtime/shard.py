"""One shard: a simulation, its subscribers, its inputs, and its ticks. No sockets, no waiting.

Time is handed in, and whoever runs the shard calls `step` when `due_s` has come. A tick counts
up, applies the inputs that wait in the order of their arrival, advances the state, sends every
subscriber its snapshot, and asks whether it is over. Between ticks nothing moves.

A shard without subscribers and inputs sleeps (unless its kind ticks when empty), and stops
after `idle_ticks_before_shutdown` ticks' time. The step is fixed, so that a replay gives the
same states; a shard that is more than one tick behind skips what it missed rather than hurry.

Invariants: the app's code runs within `guard` alone, which may raise `TickOverrun` into it. What
it raises stops this shard, with its traceback kept, and goes no further; an input that fails is
refused to its sender, and the simulation goes on. Inputs of a subscriber who has left are not
applied. A stopped shard sends nothing and takes nothing. Called by `workers.shards`.
Source: spec/realtime.md §4.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import InputQueueFull, PylonError, SubscribeFailed, SubscribeRefused
from pylon.realtime.audience import Audience, Sink
from pylon.realtime.kinds import Kind
from pylon.realtime.roster import Roster
from pylon.realtime.simulation import Saved, Simulation
from pylon.realtime.snapshots import Ack, Format, View
from pylon.realtime.state import ShardContext, SimState

FINISHED: Final = 1000
FAILED: Final = 1011

_UNGUARDED: Final[AbstractContextManager[Any]] = nullcontext()


class TickOverrun(BaseException):
    """Raised into the app's code that takes too long. No `Exception`, so that an app's own
    ``except Exception`` does not hold it up."""


# What the app's code may end in. `sys.exit()` in a tick must not end the process.
_FAULTS: Final = (Exception, TickOverrun, SystemExit)


class Recorder(Protocol):
    """Writes down what a replay needs (`pylon.realtime.replay`)."""

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None:
        """After the tick `tick`."""

    def left(self, tick: int, sid: str) -> None:
        """After the tick `tick`."""

    def ticking(self, tick: int, dt_s: float, inputs: Sequence[tuple[str, Any]]) -> None:
        """The tick `tick` is about to be done."""

    def ticked(self, simulation: Simulation) -> None:
        """It is done."""

    def stopped(self, tick: int, digest: str | None) -> None:
        """There will be no more; None where nothing can be said of the last state."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a call of `step` did."""

    ticked: bool
    late_s: float = 0.0
    inputs: int = 0
    frames: int = 0
    failure: str | None = None  # the traceback of an input that failed


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
        "_asks_inputs", "_asleep_s", "_audience", "_guard", "_idle_ticks", "_inputs", "_next_s",
        "_recorder", "_roster", "_server_seq", "_shares", "_simulation", "_was_s", "id", "kind",
        "running", "stopped_because", "traceback",
    )

    def __init__(
        self, kind: Kind, context: ShardContext, now_s: float, *,
        recorder: Recorder | None = None, saved: Saved | None = None,
        guard: AbstractContextManager[Any] = _UNGUARDED,
    ) -> None:
        """Make the state; the first tick is due at once.

        Args:
            saved: go on from here.
            guard: entered around every call of the app's code, and around nothing else.
        """
        config = kind.config
        self.id = context.id
        self.kind = kind
        self.running = True
        self.stopped_because: str | None = None
        self.traceback: str | None = None
        self._guard = guard
        self._recorder = recorder
        self._shares = kind.state.snapshot_for is SimState.snapshot_for
        self._asks_inputs = kind.state.authorize_input is not SimState.authorize_input
        self._audience = Audience(config.delta_full_every)
        self._roster = Roster(config.max_subscribers, config.allow_reconnection_s)
        self._inputs: list[_Input] = []
        self._server_seq = 0
        self._idle_ticks = 0
        self._simulation: Simulation | None = None  # None: it could not be made
        self._next_s = self._was_s = self._asleep_s = now_s
        try:
            with guard:
                self._simulation = Simulation(kind, context, saved)
        except _FAULTS as ex:
            self._fail(ex)

    # --- Looking at it -------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """How many there have been."""
        return 0 if self._simulation is None else self._simulation.tick

    @property
    def subscribers(self) -> int:
        """How many there are by sid."""
        return len(self._roster.here)

    @property
    def seats_taken(self) -> int:
        """Subscribers, those who may come back, and those for whom a seat is kept."""
        return len(self._roster)

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
        ends_s = self._roster.ends_s()
        idle_ticks = self.kind.config.idle_ticks_before_shutdown
        if ends_s is None and idle_ticks and not self._audience:
            return self._asleep_s + idle_ticks * self.kind.interval_s
        return ends_s

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
                with self._guard:
                    simulation.state.authorize_subscribe(sid, sink.auth)
        except PylonError:
            raise
        except _FAULTS as ex:
            raise self._failed(ex) from ex
        if not self.has_seat(sid):
            self._roster.check_room(1)
        was_awake = self._is_awake()
        is_new = self._roster.connect(sid)
        self._audience.add(sink)
        try:
            if is_new:
                if self._recorder is not None:
                    self._recorder.joined(simulation.tick, sid, sink.auth)
                with self._guard:
                    simulation.state.joined(sid, sink.auth)
            if not was_awake:
                self._wake(now_s)
            if simulation.tick:  # else the first tick is due, and brings the first snapshot
                with self._guard:
                    view = self._view(simulation, sid)
                self._audience.send_to(sink, view)
        except _FAULTS as ex:  # a refusal too: whom `joined` is told of, is in
            raise self._failed(ex) from ex

    def unsubscribe(self, sink: Sink, now_s: float) -> None:
        """Forget a connection. Does nothing for one that is not here."""
        if not self._audience.remove(sink):
            return
        if self._roster.disconnect(sink.sid, now_s):
            self._leave(sink.sid)
        if not self._audience:
            self._asleep_s = now_s

    def has_seat(self, sid: str) -> bool:
        """Whether `sid` is here, or a seat is kept for it."""
        return self._roster.has(sid)

    def reserve(self, sids: Sequence[str], until_s: float) -> None:
        """Keep a seat for each of them (a match), until they come or the time is over.

        Raises:
            SubscribeFailed: stopped, or there is no room for all of them.
        """
        self._running()
        self._roster.reserve(sids, until_s)

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
            InputRejected: not of the declared type, too large, or refused by the simulation.
            InputQueueFull, SubscribeFailed (stopped).
        """
        simulation = self._running()
        if sid not in self._roster.here:
            raise SubscribeRefused(f'subscriber "{sid}" is not attached to this shard')
        try:
            with self._guard:  # the type of an input may have code of its own
                value = self.kind.decode_input(bytes(raw), format)
                if self._asks_inputs:
                    simulation.state.authorize_input(sid, auth, value)
        except PylonError:
            raise
        except _FAULTS as ex:
            raise self._failed(ex) from ex
        self._server_seq += 1
        most = self.kind.config.max_input_queue
        if most and len(self._inputs) >= most:
            raise InputQueueFull("shard input queue is full", hint=f"{most} inputs wait")
        if not self._is_awake():
            self._wake(now_s)
        self._inputs.append(_Input(sid, sink, value, client_seq, self._server_seq))
        return self._server_seq

    # --- Time ----------------------------------------------------------------------------

    def step(self, now_s: float) -> Step:
        """Do what is due: a tick, the end of kept seats, or the end of an idle shard."""
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
            frames = self._run_tick(simulation, inputs, dt_s)
        except _FAULTS as ex:
            self._fail(ex)
            return Step(True, late_s, len(inputs))
        if self.running and not inputs and not self.seats_taken:
            self._idle_ticks += 1
            limit = self.kind.config.idle_ticks_before_shutdown
            if limit and self._idle_ticks >= limit:
                self.stop(FINISHED, "idle")
        else:
            self._idle_ticks = 0
        return Step(True, late_s, len(inputs), frames, simulation.take_failure())

    def save(self) -> Saved | None:
        """The shard at rest, or None where its state keeps nothing, or has failed or ended."""
        simulation = self._simulation
        if simulation is None or self.traceback is not None:
            return None
        try:
            with self._guard:
                return simulation.save()
        except _FAULTS as ex:
            self._fail(ex)
            return None

    def stop(self, code: int, reason: str) -> None:
        """Take and send nothing more, and close every connection. Later calls do nothing."""
        if not self.running:
            return
        self.running = False
        self.stopped_because = reason
        self._roster.clear()
        self._inputs.clear()
        for sink in self._audience.clear():
            sink.end(code, reason)
        self._end_recording()

    # --- Within --------------------------------------------------------------------------

    def _is_awake(self) -> bool:
        if self._inputs:
            return True
        if self.kind.is_event_driven:
            return self.tick == 0 and bool(self._audience)
        return bool(self._audience) or self.kind.config.tick_when_empty

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

    def _run_tick(self, simulation: Simulation, inputs: list[_Input], dt_s: float) -> int:
        told = [(item.sid, item.value) for item in inputs]
        if self._recorder is not None:  # first, so that a tick that fails can be replayed
            self._recorder.ticking(simulation.tick + 1, dt_s, told)
        with self._guard:
            refused = simulation.advance(told, dt_s)
            views = self._views(simulation)
            is_finished = simulation.state.is_finished()
            if self._recorder is not None:
                self._recorder.ticked(simulation)
        for item, reason in zip(inputs, refused, strict=True):
            if item.sink is None:
                continue
            if reason is None:
                ack = Ack(item.client_seq, item.server_seq, simulation.tick)
                self._audience.acknowledge(item.sink, ack)
            else:
                self._audience.reject(item.sink, item.client_seq, reason)
        frames = self._audience.send(simulation.tick, views)
        if is_finished:
            self.stop(FINISHED, "finished")
        return frames

    def _views(self, simulation: Simulation) -> dict[str, View]:
        """What each subscriber sees, by sid; one for all where the simulation says no more."""
        here = self._roster.here
        if self._shares and here:
            return dict.fromkeys(here, self._view(simulation, ""))
        return {sid: self._view(simulation, sid) for sid in here}

    def _view(self, simulation: Simulation, sid: str) -> View:
        state = simulation.state
        seen = state.snapshot() if self._shares else state.snapshot_for(sid)
        return View(simulation.tick, seen)

    def _let_go_of_seats(self, now_s: float) -> bool:
        """End the seats whose time is over; whether the shard runs (still)."""
        for sid in self._roster.expire(now_s):
            self._leave(sid)
        return self.running

    def _leave(self, sid: str) -> None:
        simulation = self._simulation
        if simulation is None or not self.running:
            return
        # The simulation is about to forget him: it is not to get inputs of somebody unknown.
        self._inputs = [item for item in self._inputs if item.sid != sid]
        if self._recorder is not None:
            self._recorder.left(simulation.tick, sid)
        try:
            with self._guard:
                simulation.state.left(sid)
        except _FAULTS as ex:
            self._fail(ex)

    def _running(self) -> Simulation:
        if self._simulation is None or not self.running:
            raise SubscribeFailed("shard is stopped", hint=self.stopped_because)
        return self._simulation

    def _end_recording(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        digest = None
        simulation = self._simulation
        if simulation is not None and self.traceback is None:
            try:
                with self._guard:
                    digest = simulation.digest()
            except _FAULTS as ex:
                self.traceback = _told(ex)
        recorder.stopped(self.tick, digest)

    def _failed(self, error: BaseException) -> SubscribeFailed:
        self._fail(error)
        return SubscribeFailed("shard is stopped", hint=self.stopped_because)

    def _fail(self, error: BaseException) -> None:
        self.traceback = _told(error)
        self.stop(FAILED, f"the simulation failed: {type(error).__name__}")


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-limits.TRACEBACK_CHARS :]
