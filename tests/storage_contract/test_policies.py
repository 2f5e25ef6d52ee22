"""Policies: the rows that a store selects are those that the rule in Python passes.

The same rule also guards updates and deletes in the writer, on the row as it is at commit.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Policy
from pylon.policy.rules import compile_rules
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.stores import TestStore
from tests.test_policy_equivalence import AUTH, FLOATS, INTS, MOMENTS, RULE, TEXTS

pytestmark = pytest.mark.stores

THING = Entity("Thing", (
    Field("s", FieldType.STRING, True, False),
    Field("t", FieldType.STRING, True, False),
    Field("n", FieldType.INT, True, False),
    Field("m", FieldType.INT, True, False),
    Field("f", FieldType.FLOAT, True, False),
    Field("b", FieldType.BOOL, True, False),
    Field("c", FieldType.BOOL, True, False),
    Field("d", FieldType.DATETIME, True, False),
))
CODEC = EntityCodec(THING)
LEAD = AuthContext(user_id="ada", tenant_id="acme", roles=("lead",))
GUEST = AuthContext(user_id="bob", is_guest=True)
BODY = st.fixed_dictionaries({
    "s": TEXTS | st.none(), "t": TEXTS | st.none(), "n": INTS | st.none(),
    "m": INTS | st.none(), "f": FLOATS | st.none(), "b": st.booleans() | st.none(),
    "c": st.booleans() | st.none(), "d": MOMENTS | st.none(),
})


def thing(number: int, body: dict[str, Any]) -> InsertRow:
    row_id = f"{number:040x}"
    encoded = CODEC.insert(body, row_id)
    return InsertRow("Thing", row_id, encoded.values, encoded.row_json)


def app_of(rule: str) -> Manifest:
    policy = Policy(
        "p", "Thing", allow_read="true", allow_update=rule, allow_delete=rule,
        allow_insert="true",
    )
    return Manifest("things", "1", (THING,), policies=(policy,))


@pytest.fixture(scope="module")
def open_stage(tested_store: TestStore) -> Any:
    """Return a function that opens an empty store in a folder."""
    return lambda folder, rule: StoreStage(open_backend(Path(folder)), app_of(rule))


@pytest.mark.parametrize(("rule", "auth", "passing"), [
    ("data.s == auth.userId", LEAD, {"ada"}),
    ("data.s == auth.userId", ANONYMOUS, set()),
    ("auth.hasRole('lead') && data.b", LEAD, {"ada"}),
    ("auth.hasRole('lead') && data.b", GUEST, set()),
    ("data.t == null", LEAD, {"bob"}),
    ("data.n / 0 == 1 || data.n > 1", LEAD, {"bob"}),
    ("data.n * 1 == 16777217", LEAD, {"bob"}),
    ("data.s in ['ada', 'bob'] && !data.b", LEAD, {"bob"}),
    ("data.s starts_with 'a'", LEAD, {"ada"}),
    ("data.t ends_with '%'", LEAD, {"ada"}),
    ("auth.tenantId == 'acme'", LEAD, {"ada", "bob"}),
    ("auth.isAdmin", LEAD, set()),
])
def test_rule_selects_the_rows_that_it_passes(
    open_stage: Any, tmp_path: Path, rule: str, auth: AuthContext, passing: set[str]
) -> None:
    stage = open_stage(tmp_path, rule)
    stage.apply(
        thing(1, {"s": "ada", "t": "100%", "n": 1, "b": True}),
        thing(2, {"s": "bob", "t": None, "n": 16777217, "b": False}),
    )
    read = compile_rules(Manifest("r", "1", (THING,), policies=(
        Policy("p", "Thing", allow_read=rule),
    ))).for_entity("Thing")
    assert {row["s"] for row in stage.rows("Thing", read.readable_by(auth))} == passing
    assert {row["s"] for row in stage.rows("Thing") if read.may_read(auth, row)} == passing
    for row in stage.rows("Thing"):
        replies = stage.apply(UpdateRow("Thing", row["id"], {"f": 0.5}, auth))
        assert (replies[0].error is None) == (row["s"] in passing)
    for row in stage.rows("Thing"):
        replies = stage.apply(DeleteRow("Thing", row["id"], auth))
        assert (replies[0].error is None) == (row["s"] in passing)
    stage.close()


@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rule=RULE, rows=st.lists(BODY, min_size=1, max_size=4), auth=AUTH)
def test_store_python_and_writer_agree_on_any_rule(
    open_stage: Any, rule: str, rows: list[dict[str, Any]], auth: AuthContext
) -> None:
    with TemporaryDirectory() as folder:
        stage = open_stage(folder, "true")
        assert not any(stage.codes(*(thing(n, row) for n, row in enumerate(rows, 1))))
        read = compile_rules(Manifest("r", "1", (THING,), policies=(
            Policy("p", "Thing", allow_read=rule),
        ))).for_entity("Thing")
        stored = stage.rows("Thing")
        passing = [row["id"] for row in stored if read.may_read(auth, row)]
        selected = [row["id"] for row in stage.rows("Thing", read.readable_by(auth))]
        assert selected == passing
        assert stage.reader.count("Thing", read.readable_by(auth)) == len(passing)
        for row in stored:
            found = stage.reader.get_version("Thing", row["id"], read.readable_by(auth))
            assert (found is not None) == (row["id"] in passing)
        stage.close()


def test_administrators_pass_every_rule(open_stage: Any, tmp_path: Path) -> None:
    stage = open_stage(tmp_path, "false")
    stage.apply(thing(1, {}))
    assert stage.codes(UpdateRow("Thing", f"{1:040x}", {"n": 1}, LEAD)) == ["POLICY_DENIED"]
    assert stage.codes(UpdateRow("Thing", f"{1:040x}", {"n": 1}, ADMIN)) == [None]
    stage.close()
