"""What an app writes to have a shard: a simulation as a class, registered by name.

    from pylon import SimState, shard

    @shard("arena", tick_rate_hz=20)
    class Arena(SimState):
        Input = Move                       # a msgspec Struct, a union of them, or dict

        def apply_input(self, sid, input, received_at_s): ...
        def tick(self, dt_s): ...
        def snapshot(self): ...

Invariants: all methods of one state are called in one greenlet, one at a time, and must not
block: a tick holds up every other shard of its process. What a method raises harms its own
shard only (`pylon.realtime.shard`). A state that takes all its chance from `self.random` and
all its time from the arguments gives the same snapshots whenever it is replayed. Subclassed by
apps; called by `pylon.realtime.shard`. Source: spec/realtime.md §4.3.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pylon.auth_context import AuthContext
from pylon.errors import SubscribeRefused


@dataclass(frozen=True, slots=True)
class ShardContext:
    """What a state is made with."""

    id: str  # the whole id, e.g. "arena:42"
    name: str  # the registered name, e.g. "arena"
    params: Mapping[str, Any] = field(default_factory=dict)  # of an admin call or a match
    seed: int = 0


class SimState:
    """Base class of simulations. Every method but `snapshot` has a default."""

    Input: ClassVar[Any] = dict[str, Any]
    """What clients send; validated on arrival by msgspec, so methods see this type only."""

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self.random = random.Random(context.seed)  # the only chance a replay can repeat

    def joined(self, sid: str, auth: AuthContext) -> None:
        """A subscriber came (not called again for a second connection of the same `sid`, nor
        for one that came back within `allow_reconnection_s`)."""

    def left(self, sid: str) -> None:
        """Its last connection is gone, and the time to come back is over."""

    def apply_input(self, sid: str, input: Any, received_at_s: float) -> None:  # noqa: A002
        """Apply one input. `received_at_s` is the simulated time of its tick's start, which a
        replay repeats. Raise `InputRejected(reason)` for one that the rules forbid."""

    def tick(self, dt_s: float) -> None:
        """Advance by `dt_s` seconds: the fixed step, 0 on the first tick."""

    def snapshot(self) -> Any:
        """What everybody sees: anything that msgspec can encode."""
        raise NotImplementedError

    def snapshot_for(self, sid: str) -> Any:
        """What one subscriber sees. Leave it alone and one encoded snapshot is shared by all."""
        return self.snapshot()

    def is_finished(self) -> bool:
        """Asked after each tick; True stops the shard."""
        return False

    def authorize_subscribe(self, sid: str, auth: AuthContext) -> None:
        """Pass, or raise `SubscribeRefused(reason)`. By default an admin may be anybody,
        and everybody else only the user that they are (spec/realtime.md §4.3)."""
        if auth.is_admin:
            return
        if auth.user_id is None:
            raise SubscribeRefused("authenticated user required")
        if auth.user_id != sid:
            raise SubscribeRefused(
                f'subscriber id "{sid}" does not match authenticated user'
            )

    def authorize_input(self, sid: str, auth: AuthContext, input: Any) -> None:  # noqa: A002
        """Pass, or raise `InputRejected(reason)`."""

    def save(self) -> Any:
        """What `restore` needs, as anything that msgspec can encode; None: not kept."""
        return None

    def restore(self, saved: Any) -> None:
        """Take over what `save` gave, in a fresh state, before its first tick."""
