"""The typed messages of the bus, msgpack-encoded. `pylon.bus` describes the sockets.

    writes    worker -> writer                 one frame: list[WriteRequest]
              writer -> worker                 one frame: list[WriteReply]
    changes   writer PUB -> SUB                one frame: ChangeBatch
    signals   any PUB -> XSUB/XPUB -> SUB      two frames: tag, Signal
    status    worker PUSH -> supervisor PULL   one frame: WorkerStatus

The operations of a `WriteRequest` are those of the store (`pylon.storage.ops`).

Invariants: every request gets exactly one reply, after the writer has committed or refused its
batch. The writer executes and answers the requests of one call (`submit_all`) in the order sent.
Other calls may overtake a call about large rows. Called by the other modules of `pylon.bus`,
`supervisor` and the workers.
"""

from __future__ import annotations

import msgspec

from pylon.metrics.wire import Family
from pylon.storage.events import ChangeBatch
from pylon.storage.nodes import NodeFacts
from pylon.storage.ops import WriteReply, WriteRequest

# --- Signals ---------------------------------------------------------------------------------


class SessionRevoked(msgspec.Struct, frozen=True, tag="session_revoked"):
    """A family of sessions has ended. Without `is_certain` a session of it has, for example one
    whose token was replaced long ago: receivers ask the store about the family."""

    family: str
    is_certain: bool = True


class DocumentsChanged(msgspec.Struct, frozen=True, tag="documents_changed"):
    """Documents have changed without an event of their rows: receivers read the store."""


class RoleState(msgspec.Struct, frozen=True):
    wanted: int
    ready: int
    is_needed: bool = True  # else the node is ready without the role


class RolesReport(msgspec.Struct, frozen=True, tag="roles"):
    """The supervisor's view of its children and of the database file, every two seconds; readiness
    is judged by it."""

    roles: dict[str, RoleState]
    draining: bool
    store_problem: str | None = None  # the reason why the store refuses writes, or soon will
    # Further checks of this node, by name, and what is wrong; None: nothing.
    checks: dict[str, str | None] = {}
    schema_pending: int = 0  # steps of the schema that are done while the server serves


class NodeState(msgspec.Struct, frozen=True, tag="node"):
    """The state of a node whose database others may share. Sent with each `RolesReport`."""

    is_cut_off: bool  # the database has not answered for PYLON_DATABASE_OUTAGE_S
    node: str = ""  # the name of this node
    nodes: tuple[NodeFacts, ...] = ()  # the nodes that live, this one first
    # The lease of this node (`pylon.storage.nodes.NodeLease`).
    lease: str = ""
    lease_until_s: float = 0.0

    @property
    def has_others(self) -> bool:
        """Whether other nodes live."""
        return len(self.nodes) != 1


Signal = SessionRevoked | DocumentsChanged | RolesReport | NodeState


# --- Status ----------------------------------------------------------------------------------


class WorkerStatus(msgspec.Struct, frozen=True, array_like=True):
    """A heartbeat, every one or two seconds: alive, ready, the process's metrics, and the sessions
    whose use is to be noted."""

    role: str
    worker: str  # unique name of the process within the role, e.g. "1"
    pid: int
    ready: bool
    connections: int
    metrics: list[Family]
    used_sessions: list[str] = []
    spent_rates: list[tuple[int, float]] = []  # see `pylon.limiter.RateLimiter.take_spent`


write_requests = msgspec.msgpack.Decoder(list[WriteRequest])
write_replies = msgspec.msgpack.Decoder(list[WriteReply])
change_batch = msgspec.msgpack.Decoder(ChangeBatch)
signal = msgspec.msgpack.Decoder(Signal)
worker_status = msgspec.msgpack.Decoder(WorkerStatus)
encode = msgspec.msgpack.Encoder().encode
