"""SimState: the base class of an app's simulations.

    from pylon import SimState, shard

    @shard("arena", tick_rate_hz=20)
    class Arena(SimState):
        Input = Move                       # a msgspec Struct, a union of them, or dict

        def apply_input(self, sid, input, received_at_s): ...
        def tick(self, dt_s): ...
        def snapshot(self): ...

Invariants: Pylon calls the methods of one state one at a time. They must not block, because a tick
delays every other shard of its process. An error in a method harms its own shard only. A replay
gives the same snapshots if the state takes randomness from `self.random` only, and time from the
arguments only.

Subclassed by apps; called by `pylon.realtime.shard`, `.simulation` and `.replay`.
Source: spec/realtime.md §4.3.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from msgspec import field

from pylon.auth_context import AuthContext
from pylon.errors import SubscribeRefused


class ShardContext(msgspec.Struct, frozen=True):
    """Arguments of a new state."""

    id: str  # the whole id, e.g. "arena:42"
    name: str  # the registered name, e.g. "arena"
    params: Mapping[str, Any] = field(default_factory=dict)  # of an admin call or a match
    seed: int = 0


class SimState:
    """Base class of simulations. All methods except `snapshot` have a default."""

    Input: ClassVar[Any] = dict[str, Any]
    """Type of the inputs. msgspec validates each on arrival, so methods see this type only."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self.random = random.Random(context.seed)  # the only randomness that a replay repeats

    def joined(self, sid: str, auth: AuthContext) -> None:
        """Add a subscriber.

        Pylon does not call it for a second connection of the same `sid`, nor for a subscriber who
        reconnects within `allow_reconnection_s`.
        """

    def left(self, sid: str) -> None:
        """Remove a subscriber who has no connection and can no longer reconnect."""

    def apply_input(self, sid: str, input: Any, received_at_s: float) -> None:  # noqa: A002
        """Apply one input. Raise `InputRejected(reason)` if the rules forbid it.

        `received_at_s` is the simulated time at the start of the tick, which a replay repeats.
        """

    def tick(self, dt_s: float) -> None:
        """Advance by `dt_s` seconds: the fixed step, or 0 on the first tick.

        In an event-driven kind (`tick_rate_hz=0`) it is the time since the last tick.
        """

    def snapshot(self) -> Any:
        """Return the state that all subscribers see: any value that msgspec can encode."""
        raise NotImplementedError

    def snapshot_for(self, sid: str) -> Any:
        """Return the state that one subscriber sees.

        Without an override all subscribers share one encoded snapshot.
        """
        return self.snapshot()

    def is_finished(self) -> bool:
        """Whether the shard is to stop. Called after each tick."""
        return False

    def authorize_subscribe(self, sid: str, auth: AuthContext) -> None:
        """Return, or raise `SubscribeRefused(reason)`.

        By default an admin may use any `sid`, and a user only their own id
        (spec/realtime.md §4.3).
        """
        if auth.is_admin:
            return
        if auth.user_id is None:
            raise SubscribeRefused("authenticated user required")
        if auth.user_id != sid:
            raise SubscribeRefused(
                f'subscriber id "{sid}" does not match authenticated user'
            )

    def authorize_input(self, sid: str, auth: AuthContext, input: Any) -> None:  # noqa: A002
        """Return, or raise `InputRejected(reason)`."""

    def save(self) -> Any:
        """Return a value for `restore`, which msgspec can encode; None: nothing is saved."""
        return None

    def restore(self, saved: Any) -> None:
        """Set a new state from the result of `save`, before its first tick."""
