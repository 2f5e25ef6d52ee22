"""Rules with ``exists(...)`` that Hypothesis draws, with callers and rows of `exists_app`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pylon.auth_context import ANONYMOUS, AuthContext
from tests.support.exists_app import ANN, BOB

ROOMS, USERS, ROLES = ("r1", "r2", "r3"), ("ann", "bob"), ("owner", "guest")
CALLERS = st.sampled_from([ANN, BOB, ANONYMOUS, AuthContext("ann", tenant_id="r1")])
LEVEL = st.none() | st.integers(0, 2)
BODIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "Room": st.fixed_dictionaries({
        "teamId": st.none() | st.sampled_from(ROOMS), "level": LEVEL,
        "isOpen": st.none() | st.booleans(),
    }),
    "Member": st.fixed_dictionaries({
        "roomId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS),
        "role": st.none() | st.sampled_from(ROLES), "level": LEVEL,
        "isMuted": st.none() | st.booleans(), "weight": st.none() | st.sampled_from([0.5, 1.0]),
    }),
    "TeamMember": st.fixed_dictionaries({
        "teamId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS),
        "role": st.none() | st.sampled_from(ROLES),
    }),
    "Message": st.fixed_dictionaries({
        "roomId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS), "level": LEVEL,
        "body": st.none() | st.sampled_from((*ROLES, "r1")),
        "weight": st.none() | st.sampled_from([0.5, 1.0, 2.0]),
    }),
}
TEXT_VALUE = st.sampled_from(["data.roomId", "data.userId", "data.body", "auth.userId", "'r1'"])
NUMBER_VALUE = st.sampled_from(["data.level", "data.weight", "0", "1", "-1", "1.5"])
ANY_ORDER = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


@st.composite
def comparison(draw: st.DrawFn, role: str = "role", level: str = "level") -> str:
    """A comparison that needs no index: no equality with the caller or the row."""
    made: str = draw(st.one_of(
        st.builds("{} {} {}".format, st.just(level), ANY_ORDER.filter(lambda s: s != "=="),
                  NUMBER_VALUE),
        st.builds("{} {} {}".format, st.just(role), st.sampled_from(["!=", "<", ">="]),
                  TEXT_VALUE),
        st.sampled_from([
            f"{role} == 'owner'", f"{role} == null", f"{role} != null", f"{level} == null",
            f"{role} in ['owner', null]", f"{role} in ['guest', data.body]", f"{level} == 1",
            f"{role} in auth.roles", f"{role} in []", f"{level} in [0, data.weight]",
        ]),
    ))
    return made


@st.composite
def exists(draw: st.DrawFn) -> str:
    """An ``exists(...)``, of one level or two."""
    if draw(st.integers(0, 2)):
        keys = draw(st.sampled_from([("roomId",), ("userId",), ("roomId", "userId")]))
        parts = [f"{key} == {draw(TEXT_VALUE)}" for key in keys]
        parts += draw(st.lists(comparison(), max_size=2))
        if draw(st.booleans()):
            parts.append("isMuted " + draw(st.sampled_from(["==", "!="])) + " true")
        return f"exists(Member, {', '.join(draw(st.permutations(parts)))})"
    key = draw(st.sampled_from(["id", "teamId"]))
    parts = [f"{key} == {draw(TEXT_VALUE)}"]
    if draw(st.booleans()):
        parts.append("level " + draw(ANY_ORDER.filter(lambda s: s != "==")) + " data.level")
    inner = [f"teamId == {draw(st.sampled_from(['Room.teamId', 'Room.id', 'data.roomId']))}"]
    inner.append(f"userId == {draw(TEXT_VALUE)}")
    if draw(st.booleans()):
        inner.append("role != " + draw(st.sampled_from(["Room.teamId", "data.body", "null"])))
    nested = f"exists(TeamMember, {', '.join(draw(st.permutations(inner)))})"
    return f"exists(Room, {', '.join(draw(st.permutations([*parts, nested])))})"


ASKING_RULE = st.recursive(
    exists(),
    lambda rule: st.one_of(
        rule.map("!({})".format), st.builds("({} && {})".format, rule, rule),
        st.builds("({} || {})".format, rule, rule),
        st.builds("({} && {})".format, rule, st.sampled_from(["data.level > 0", "data.body"])),
        st.builds("({} || {})".format, rule, st.just("data.userId == auth.userId")),
    ),
    max_leaves=3,
)
