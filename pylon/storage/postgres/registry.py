"""Registry: the rows of `_pylon_nodes`, one for each node that lives or has lived lately.

Heartbeats and their ages come from the database's clock, so nodes whose clocks differ agree on who
lives. Two nodes must not have one name: the later start takes the row, and the other one sees that
it has lost it.

The row has the node's lease on the shards that its workers have claimed (`pylon.storage.nodes`).
One row for a node, and not one for each shard: a heartbeat costs the same with 20,000 shards.
`shards.CLAIM` locks the row before it judges the lease, and so does a heartbeat. So a lease that a
claim has found ended is not renewed afterwards. Called by `node_link`, on its connection.
"""

from __future__ import annotations

from typing import Final

import msgspec
from psycopg.pq.abc import PGresult

from pylon.schema.history import WRITES_FORMAT
from pylon.storage.nodes import DEAD_AFTER_S, LEASE_S, NodeFacts
from pylon.storage.postgres.statements import Statement

_FRESH: Final = f"seen_at > clock_timestamp() - interval '{DEAD_AFTER_S:g} seconds'"
_REGISTER: Final = """
    INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, region,
        cluster_url, curve_key, schema_format, started_at, seen_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, clock_timestamp(), clock_timestamp())
    ON CONFLICT (node) DO UPDATE SET incarnation = excluded.incarnation, roles = excluded.roles,
        version = excluded.version, manifest = excluded.manifest, workers = excluded.workers,
        region = excluded.region, cluster_url = excluded.cluster_url,
        curve_key = excluded.curve_key, schema_format = excluded.schema_format,
        started_at = excluded.started_at,
        seen_at = excluded.seen_at, lease_until = CASE
            WHEN _pylon_nodes.incarnation = excluded.incarnation THEN _pylon_nodes.lease_until
        END"""
_BEAT: Final = (
    "UPDATE _pylon_nodes SET seen_at = clock_timestamp() WHERE node = $1 AND incarnation = $2 "
    "RETURNING extract(epoch FROM seen_at)"
)
# A crash of the server may not take a renewal back: others would claim too early.
_DURABLE: Final = "SELECT set_config('synchronous_commit', 'on', true)"
_UNTIL: Final = f"lease_until = clock_timestamp() + interval '{LEASE_S:g} seconds'"
_RENEW: Final = (
    f"UPDATE _pylon_nodes SET {_UNTIL} WHERE node = $1 AND incarnation = $2 AND lease = $3 "
    "AND lease_until > clock_timestamp() RETURNING 1"
)
_TAKE: Final = (
    f"UPDATE _pylon_nodes SET lease = $3, {_UNTIL} WHERE node = $1 AND incarnation = $2 "
    "RETURNING 1"
)
_OTHERS: Final = (
    "SELECT node, incarnation, roles, version, manifest, workers, region, cluster_url, curve_key "
    f"FROM _pylon_nodes WHERE node <> $1 AND {_FRESH} ORDER BY node"
)
# Living nodes of builds that know a lower format than $1. The first ones did not write theirs.
OLDER: Final = (
    f"SELECT node FROM _pylon_nodes WHERE coalesce(schema_format, 1) < $1 AND {_FRESH} "
    "ORDER BY node"
)
LIVING: Final = f"SELECT node FROM _pylon_nodes WHERE {_FRESH} ORDER BY node"
_HOLDER: Final = f"SELECT incarnation FROM _pylon_nodes WHERE node = $1 AND {_FRESH}"
_LEAVE: Final = "DELETE FROM _pylon_nodes WHERE node = $1 AND incarnation = $2"
_TIDY: Final = "DELETE FROM _pylon_nodes WHERE seen_at < clock_timestamp() - interval '1 day'"


def register(facts: NodeFacts) -> Statement:
    """Return the statement that puts a node into the registry, or renews its row."""
    return _REGISTER, (
        facts.name, facts.incarnation, ",".join(facts.roles), facts.version, facts.manifest,
        msgspec.json.encode(facts.workers).decode(), facts.region, facts.cluster_url,
        facts.curve_key, WRITES_FORMAT,
    )


def beat(facts: NodeFacts) -> Statement:
    """Return the statement of a heartbeat; it returns a row if the node still has its row."""
    return _BEAT, (facts.name, facts.incarnation)


def durable() -> Statement:
    """Return the statement that makes the rest of its transaction survive a crash."""
    return _DURABLE, ()


def renew(facts: NodeFacts, lease: str) -> Statement:
    """Return the statement that renews a lease; it returns a row if the lease has not ended. The
    transaction has locked the row already, by `beat`."""
    return _RENEW, (facts.name, facts.incarnation, lease)


def take(facts: NodeFacts, lease: str) -> Statement:
    """Return the statement that gives the node another lease; it returns a row if the node has its
    row."""
    return _TAKE, (facts.name, facts.incarnation, lease)


def others(facts: NodeFacts) -> Statement:
    """Return the statement that reads the other nodes that live, for `read_others`."""
    return _OTHERS, (facts.name,)


def holder(facts: NodeFacts) -> Statement:
    """Return the statement that reads which living incarnation has the row of a node's name."""
    return _HOLDER, (facts.name,)


def leave(facts: NodeFacts) -> Statement:
    """Return the statement that takes a node out of the registry."""
    return _LEAVE, (facts.name, facts.incarnation)


def tidy() -> Statement:
    """Return the statement that removes nodes that ended long ago."""
    return _TIDY, ()


def read_others(result: PGresult) -> tuple[NodeFacts, ...]:
    """Return the rows of `others`."""
    return tuple(_facts_of(result, row) for row in range(result.ntuples))


def _facts_of(result: PGresult, row: int) -> NodeFacts:
    name, incarnation, roles, version, manifest, workers, region, cluster_url, curve_key = (
        "" if (value := result.get_value(row, column)) is None else value.decode()
        for column in range(9)
    )
    try:
        counts = msgspec.json.decode(workers or "{}", type=dict[str, int])
    except msgspec.MsgspecError:  # of a later version
        counts = {}
    return NodeFacts(
        name, incarnation, tuple(roles.split(",")), version, manifest, counts, region,
        cluster_url, curve_key,
    )
