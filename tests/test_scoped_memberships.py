"""Scopes and membership policies together: each replica holds the rows that its caller may read and
its scope has, live and by pulls, while rows and memberships come and go."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import count_examples
from tests.support.membership_stage import MembershipStage, Replica
from tests.test_hub_memberships import CALLERS, JUDGED, STEP

pytestmark = pytest.mark.stores

FILTERS: list[dict[str, Any] | None] = [
    None, {"roomId": "r1"}, {"roomId": {"$in": ["r1", "r2"]}},
    {"roomId": "r2", "level": {"$gte": 1}},
    {"level": {"$lt": 2}}, {"roomId": None},
]


@settings(max_examples=count_examples(60), deadline=None)
@given(
    st.sampled_from(JUDGED),
    st.lists(st.tuples(st.booleans(), st.sampled_from(FILTERS)), min_size=2, max_size=2),
    st.lists(
        st.tuples(STEP, st.booleans(), st.booleans(), st.integers(0, 5)), min_size=2, max_size=8,
    ),
    st.booleans(),
)
def test_a_scoped_replica_holds_its_part_of_what_its_caller_may_read(
    judged: str, scopes: list[tuple[bool, dict[str, Any] | None]],
    steps: list[tuple[list[Any], bool, bool, int]], is_remote: bool,
) -> None:
    """Args: a scope is whether it names the entity, and a filter; a step is as in
    `test_hub_memberships`."""
    with tempfile.TemporaryDirectory() as folder:
        stage = MembershipStage(Path(folder), is_remote=is_remote)
        try:
            made: list[tuple[list[str] | None, dict[str, Any] | None]] = [
                ([judged] if is_named else None, None if body is None else {judged: body})
                for is_named, body in scopes
            ]
            live = [Replica(stage, auth, True, *scope) for auth in CALLERS[:2] for scope in made]
            pulled = [Replica(stage, auth, False, *scope) for auth in CALLERS[:2] for scope in made]
            for replica in live:
                replica.connect()
            for number, (ops, is_one_commit, is_published, reconnecting) in enumerate(steps):
                named = [(verb, judged if entity == "judged" else entity, row_number, values)
                         for verb, entity, row_number, values in ops]
                stage.carry_out(named, number, one_commit=is_one_commit)
                if is_published:
                    stage.settle()
                    for replica in live:
                        replica.check(f"live after step {number}")
                if reconnecting < len(live):
                    live[reconnecting].reconnect()
                if reconnecting % 2:
                    pulled[reconnecting % len(pulled)].pull()
            stage.settle()
            for replica in live:
                replica.check("live at the end")
            for replica in pulled:
                replica.pull()
                replica.check("pulled at the end")
        finally:
            stage.close()
