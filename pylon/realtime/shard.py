"""One shard: a simulation, its subscribers, its inputs and its ticks.

A shard has no sockets and never waits: the caller passes the time in, and calls `step` at `due_s`.
A tick applies the waiting inputs in order of arrival, advances the state, sends each subscriber its
snapshot, and asks the state whether it is finished. The state changes in ticks only.

`tick_schedule` decides when a tick is due and when an idle shard ends, `input_queue` holds the
inputs until then, `roster` has the places of subscribers, and `audience` their connections.

Invariants: the app's code runs inside `guard` only, which may raise `TickOverrun` into it. An error
of the app's code stops this shard only; the shard keeps the traceback. An error in `apply_input`
refuses that input only, and the simulation goes on. Inputs of a subscriber who has left are not
applied. A stopped shard sends nothing and accepts nothing. Called by `workers.shards`.
Source: spec/realtime.md §4.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import PylonError, SubscribeFailed, SubscribeRefused
from pylon.realtime.audience import Audience, Sink
from pylon.realtime.input_queue import InputQueue, PendingInput
from pylon.realtime.kinds import Kind
from pylon.realtime.recorder import Recorder
from pylon.realtime.roster import Roster
from pylon.realtime.simulation import Saved, Simulation
from pylon.realtime.snapshots import Ack, Format, View
from pylon.realtime.state import ShardContext, SimState
from pylon.realtime.tick_schedule import TickSchedule

FINISHED: Final = 1000
FAILED: Final = 1011

_UNGUARDED: Final[AbstractContextManager[Any]] = nullcontext()


class TickOverrun(BaseException):
    """Raised into app code that takes too long.

    It is no `Exception`, so that an app's own ``except Exception`` does not catch it.
    """


# Errors of the app's code that stop the shard. `sys.exit()` in a tick must not end the process.
_FAULTS: Final = (Exception, TickOverrun, SystemExit)


@dataclass(frozen=True, slots=True)
class Step:
    """Result of a call of `step`."""

    ticked: bool
    late_s: float = 0.0
    inputs: int = 0
    frames: int = 0
    failure: str | None = None  # the traceback of an input that failed


class Shard:
    """A running simulation."""

    __slots__ = (
        "_audience", "_authorizes_inputs", "_guard", "_inputs", "_recorder", "_roster",
        "_schedule", "_shares_view", "_simulation", "id", "kind", "running", "stopped_because",
        "traceback",
    )

    def __init__(
        self, kind: Kind, context: ShardContext, now_s: float, *,
        recorder: Recorder | None = None, saved: Saved | None = None,
        guard: AbstractContextManager[Any] = _UNGUARDED,
    ) -> None:
        """Make the state. The first tick is due at once.

        Args:
            saved: the saved simulation to go on from.
            guard: context manager around every call of the app's code, and around nothing else.
        """
        config = kind.config
        self.id = context.id
        self.kind = kind
        self.running = True
        self.stopped_because: str | None = None
        self.traceback: str | None = None
        self._guard = guard
        self._recorder = recorder
        self._shares_view = kind.state.snapshot_for is SimState.snapshot_for
        self._authorizes_inputs = kind.state.authorize_input is not SimState.authorize_input
        self._audience = Audience(config.delta_full_every)
        self._roster = Roster(config.max_subscribers, config.allow_reconnection_s)
        self._inputs = InputQueue(config.max_input_queue)
        self._schedule = TickSchedule(kind, now_s)
        self._simulation: Simulation | None = None  # None: its constructor failed
        try:
            with guard:
                self._simulation = Simulation(kind, context, saved)
        except _FAULTS as ex:
            self._fail(ex)

    # --- Status --------------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """Return the number of ticks so far."""
        return 0 if self._simulation is None else self._simulation.tick

    @property
    def subscribers(self) -> int:
        """Return the number of connected subscribers (sids)."""
        return len(self._roster.connected_sids)

    @property
    def seats_taken(self) -> int:
        """Return the number of subscribers and reserved places."""
        return len(self._roster)

    @property
    def input_queue(self) -> int:
        """Return the number of inputs that wait for the next tick."""
        return len(self._inputs)

    def due_s(self) -> float | None:
        """Return when the next call of `step` is due; None: not before an input or subscriber."""
        if not self.running:
            return None
        if self._is_awake():
            return self._schedule.next_s
        next_expiry_s = self._roster.next_expiry_s()
        if next_expiry_s is None and not self._audience:
            return self._schedule.sleep_end_s()
        return next_expiry_s

    # --- Subscribers ---------------------------------------------------------------------

    def subscribe(self, sink: Sink, now_s: float, *, has_place: bool = False) -> None:
        """Add a connection, and send it the current snapshot.

        Args:
            has_place: the client has presented the reconnect token of its sid. The simulation
                does not authorize it again while the place is reserved.

        Raises:
            SubscribeRefused: the simulation refuses the subscriber.
            SubscribeFailed: the shard has stopped, or is full.
        """
        simulation = self._running_simulation()
        sid = sink.sid
        try:
            if not has_place or not self.has_place(sid):
                with self._guard:
                    simulation.state.authorize_subscribe(sid, sink.auth)
        except PylonError:
            raise
        except _FAULTS as ex:
            raise self._stop_failed(ex) from ex
        if not self.has_place(sid):
            self._roster.check_capacity(1)
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
                self._schedule.wake(now_s)
            if simulation.tick:  # before the first tick, that tick sends the first snapshot
                with self._guard:
                    view = self._view(simulation, sid)
                self._audience.send_to(sink, view)
        except _FAULTS as ex:  # a `SubscribeRefused` too: `joined` is too late to refuse
            raise self._stop_failed(ex) from ex

    def unsubscribe(self, sink: Sink, now_s: float) -> None:
        """Remove a connection. Do nothing if the shard does not have it."""
        if not self._audience.remove(sink):
            return
        if self._roster.disconnect(sink.sid, now_s):
            self._leave(sink.sid)
        if not self._audience:
            self._schedule.sleep(now_s)

    def has_place(self, sid: str) -> bool:
        """Whether `sid` is connected or has a reserved place."""
        return self._roster.has_place(sid)

    def reserve(self, sids: Sequence[str], until_s: float) -> None:
        """Reserve a place for each player of a match, until they connect or `until_s` has passed.

        Raises:
            SubscribeFailed: the shard has stopped, or has too few free places.
        """
        self._running_simulation()
        self._roster.reserve(sids, until_s)

    # --- Inputs --------------------------------------------------------------------------

    def submit(
        self, sid: str, auth: AuthContext, raw: bytes | msgspec.Raw, now_s: float, *,
        sink: Sink | None = None, client_seq: int | None = None, format: Format = Format.JSON,  # noqa: A002
    ) -> int:
        """Validate an input and queue it for the next tick.

        Args:
            raw: the input alone, encoded in `format`.
            sink: the connection that sent it, which receives the ack.

        Returns:
            The server seq of the input: 1, 2, 3 … for this shard. An input that finds the queue
            full uses one up too.

        Raises:
            SubscribeRefused: `sid` has no open connection.
            InputRejected: not of the declared type, too large, or refused by the simulation.
            InputQueueFull: `max_input_queue` inputs wait.
            SubscribeFailed: the shard has stopped.
        """
        simulation = self._running_simulation()
        if sid not in self._roster.connected_sids:
            raise SubscribeRefused(f'subscriber "{sid}" is not attached to this shard')
        try:
            with self._guard:  # the app's input type may run code when it is decoded
                value = self.kind.decode_input(bytes(raw), format)
                if self._authorizes_inputs:
                    simulation.state.authorize_input(sid, auth, value)
        except PylonError:
            raise
        except _FAULTS as ex:
            raise self._stop_failed(ex) from ex
        if not self._is_awake():
            self._schedule.wake(now_s)
        return self._inputs.add(sid, sink, value, client_seq)

    # --- Time ----------------------------------------------------------------------------

    def step(self, now_s: float) -> Step:
        """Do the work that is due: a tick, expired reservations, or the end of an idle shard."""
        simulation = self._simulation
        if simulation is None or not self.running or not self._expire_places(now_s):
            return Step(ticked=False)
        if not self._is_awake():
            due_s = self.due_s()
            if due_s is not None and now_s >= due_s and not self.seats_taken:
                self.stop(FINISHED, "idle")
            return Step(ticked=False)
        late_s = now_s - self._schedule.next_s
        if late_s < 0:
            return Step(ticked=False)
        inputs = self._inputs.take_all()
        dt_s = self._schedule.start_tick(self.tick, now_s)
        try:
            frames = self._run_tick(simulation, inputs, dt_s)
        except _FAULTS as ex:
            self._fail(ex)
            return Step(True, late_s, len(inputs))
        if self._schedule.end_tick(is_idle=not inputs and not self.seats_taken):
            self.stop(FINISHED, "idle")
        return Step(True, late_s, len(inputs), frames, simulation.take_failure())

    def save(self) -> Saved | None:
        """Return the simulation to store; None if its class saves nothing or it has failed."""
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
        """Accept and send nothing more, and close every connection. Later calls do nothing."""
        if not self.running:
            return
        self.running = False
        self.stopped_because = reason
        self._roster.clear()
        self._inputs.clear()
        for sink in self._audience.clear():
            sink.end(code, reason)
        self._end_recording()

    # --- Internals -----------------------------------------------------------------------

    def _is_awake(self) -> bool:
        if self._inputs:
            return True
        if self.kind.is_event_driven:
            return self.tick == 0 and bool(self._audience)
        return bool(self._audience) or self.kind.config.tick_when_empty

    def _run_tick(self, simulation: Simulation, inputs: list[PendingInput], dt_s: float) -> int:
        values = [(item.sid, item.value) for item in inputs]
        if self._recorder is not None:  # first, so that a tick that fails can be replayed
            self._recorder.ticking(simulation.tick + 1, dt_s, values)
        with self._guard:
            refused = simulation.advance(values, dt_s)
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
        """Return the view of each subscriber by sid.

        All share one view if the class does not override `snapshot_for`.
        """
        connected_sids = self._roster.connected_sids
        if self._shares_view and connected_sids:
            return dict.fromkeys(connected_sids, self._view(simulation, ""))
        return {sid: self._view(simulation, sid) for sid in connected_sids}

    def _view(self, simulation: Simulation, sid: str) -> View:
        state = simulation.state
        snapshot = state.snapshot() if self._shares_view else state.snapshot_for(sid)
        return View(simulation.tick, snapshot)

    def _expire_places(self, now_s: float) -> bool:
        """End the reservations whose time is over, and return whether the shard still runs."""
        for sid in self._roster.expire(now_s):
            self._leave(sid)
        return self.running

    def _leave(self, sid: str) -> None:
        simulation = self._simulation
        if simulation is None or not self.running:
            return
        # The simulation must not receive inputs of a subscriber that it has removed.
        self._inputs.remove_sender(sid)
        if self._recorder is not None:
            self._recorder.left(simulation.tick, sid)
        try:
            with self._guard:
                simulation.state.left(sid)
        except _FAULTS as ex:
            self._fail(ex)

    def _running_simulation(self) -> Simulation:
        """Return the simulation.

        Raises:
            SubscribeFailed: the shard has stopped.
        """
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
                self.traceback = _traceback_text(ex)
        recorder.stopped(self.tick, digest)

    def _stop_failed(self, error: BaseException) -> SubscribeFailed:
        """Stop the shard, and return the error for the client that called."""
        self._fail(error)
        return SubscribeFailed("shard is stopped", hint=self.stopped_because)

    def _fail(self, error: BaseException) -> None:
        self.traceback = _traceback_text(error)
        self.stop(FAILED, f"the simulation failed: {type(error).__name__}")


def _traceback_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-limits.TRACEBACK_CHARS :]
