"""What rules mean, which rules apply, what a denial says, and the routing plan."""

from __future__ import annotations

import json
from typing import Any

import apsw
import pytest

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.diagnostics import ManifestInvalid
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Operation, Policy
from pylon.manifest_loader import parse_manifest
from pylon.policy.entity_rules import EntityRules
from pylon.policy.routing import ByAuth, Everyone, General, Keyed, Nobody, Routing
from pylon.policy.rules import RuleSet, compile_rules
from pylon.query.conditions import equal
from pylon.query.evaluate import evaluator_of
from pylon.query.predicate import FALSE, TRUE
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE

NOTE = Entity(
    "Note",
    (
        Field("owner", FieldType.ID, True, False, "User"),
        Field("org", FieldType.STRING, True, False),
        Field("due", FieldType.DATETIME, True, False),
        Field("n", FieldType.INT, True, False),
        Field("price", FieldType.FLOAT, True, False),
        Field("open", FieldType.BOOL, True, False),
    ),
)
ANN = AuthContext("ann", tenant_id="acme", roles=("lead", "dev"))
BOB = AuthContext("bob")
ROW: dict[str, Any] = {
    "id": "r1", "owner": "ann", "org": "acme", "due": "2026-03-01", "n": 7, "price": 2.5,
    "open": True,
}
EMPTY: dict[str, Any] = dict.fromkeys(ROW) | {"id": "r2"}


def rules(*policies: Policy) -> EntityRules:
    return compile_rules(Manifest("x", "1", (NOTE,), policies=policies)).for_entity("Note")


def policy(**keys: str) -> Policy:
    return Policy("p", "Note", **keys)


@pytest.mark.parametrize(
    ("rule", "on_row", "on_empty"),
    [
        ("true", True, True),
        ("false", False, False),
        # equality: two nulls are not equal, unless null is written
        ("data.owner == auth.userId", True, False),
        ("data.owner != auth.userId", False, True),
        ("data.owner == null", False, True),
        ("null != data.owner", True, False),
        ("null == null", True, True),
        ("data.owner == data.owner", True, False),
        ("data.owner != data.owner", False, True),
        ("data.open == true", True, False),
        ("data.open != true", False, True),
        ("data.open == false", False, False),
        ("(data.n == 7) == data.open", True, False),
        ("(data.n == null) == true", False, True),
        # order: by code point for texts, false for null
        ("data.due <= '2026-03-01T00:00:00Z'", True, False),
        ("data.due >= '2026-03-02'", False, False),
        ("!(data.due >= '2026-03-02')", True, True),
        ("'Z' < 'a' && 'z' < 'ä' && '\uffff' < '\U0001f600'", True, True),
        ("data.n <= 7.0 && data.n > 6.9", True, False),
        # numbers: one kind; null for null, for division by zero and for NaN
        ("data.n == 7.0", True, False),
        ("data.n + data.price * 2 == 12", True, False),
        ("data.n / 2 == 3.5", True, False),
        ("data.n % 4 == 3 && -data.n % 4 == -3 && data.n % -4 == 3", True, False),
        ("7.9 % 2.5 == 1", True, True),
        ("data.n / 0 == null", True, True),
        ("data.n % 0 == null", True, True),
        ("data.n / 0 == data.n / 0", False, False),
        ("(1e308 * 10 - 1e308 * 10) == null", True, True),
        ("1e308 * 10 > 1e308", True, True),
        ("9007199254740993 == 9007199254740992.0", False, False),
        ("-(-data.n) == data.n", True, False),
        ("1 - 2 - 3 == -4 && 2 + 3 * 4 == 14", True, True),
        # truth of a bare value
        ("data.open", True, False),
        ("data.n", True, False),
        ("data.n - 7", False, False),
        ("data.owner", True, False),
        ("''", False, False),
        ("'0'", True, True),
        ("0.0", False, False),
        ("!data.owner", False, True),
        # lists and roles
        ("data.n in [1, 7.0]", True, False),
        ("data.n in []", False, False),
        ("data.owner in [null]", False, True),
        ("data.owner in ['x', null]", False, True),
        ("data.owner in ['x', data.org, auth.userId]", True, False),
        ("!(data.n in [7])", False, True),
        ("'lead' in auth.roles", True, True),
        ("data.org in auth.roles", False, False),
        ("auth.hasRole('lead') && !auth.hasRole('boss')", True, True),
        ("auth.hasAnyRole('boss', 'dev')", True, True),
        # affixes
        ("data.org starts_with 'ac' && ends_with(data.org, 'me')", True, False),
        ("data.org starts_with ''", True, False),
        ("data.org ends_with 'ACME'", False, False),
        ("!(data.org starts_with 'x')", True, True),
        # existing is the same row for reads
        ("existing.n == data.n", True, False),
        # the caller
        ("auth.tenantId == data.org && auth.tenant_id == 'acme'", True, False),
        ("!auth.isGuest && !auth.isAdmin", True, True),
    ],
)
def test_what_a_rule_means(rule: str, on_row: bool, on_empty: bool) -> None:
    found = rules(policy(allow_read=rule))
    assert found.may_read(ANN, ROW) is on_row
    assert found.may_read(ANN, EMPTY) is on_empty
    assert selected(found, ANN) == {row["id"] for row in (ROW, EMPTY) if found.may_read(ANN, row)}


def selected(found: EntityRules, auth: AuthContext) -> set[str]:
    """The ids that SQLite finds with the rule's SQL."""
    clause = compile_predicate(SQLITE, NOTE, found.readable_by(auth))
    with apsw.Connection(":memory:") as store:
        store.execute(
            "CREATE TABLE Note (id TEXT, owner TEXT, org TEXT, due TEXT, n INTEGER, price REAL,"
            " open INTEGER)"
        )
        for row in (ROW, EMPTY):
            values = tuple(int(v) if isinstance(v, bool) else v for v in row.values())
            store.execute("INSERT INTO Note VALUES (?,?,?,?,?,?,?)", values)
        rows = store.execute(f"SELECT id FROM Note WHERE {clause.sql}", clause.params)
        return {row_id for (row_id,) in rows}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("auth.userId ends_with data.org", {"r1"}),
        ("auth.userId == 'x\\0acme'", {"r1", "r2"}),
        ("auth.tenantId starts_with data.org", set()),
        ("data.org starts_with auth.tenantId", set()),
    ],
)
def test_a_nul_in_a_callers_attribute_cuts_nothing_off(rule: str, expected: set[str]) -> None:
    odd = AuthContext("x\0acme", tenant_id="\0acme")
    found = rules(policy(allow_read=rule))
    assert {row["id"] for row in (ROW, EMPTY) if found.may_read(odd, row)} == expected
    assert selected(found, odd) == expected


def test_sums_beyond_64_bits_and_division_of_whole_numbers_agree_with_sql() -> None:
    for rule in ("data.n / 2 > 3.4", "data.n * 9223372036854775807 + 1 > 9e18 * 7",
                 "data.n + 9223372036854775807 == 9223372036854775807 + 7.0"):
        found = rules(policy(allow_read=rule))
        assert found.may_read(ANN, ROW)
        assert selected(found, ANN) == {"r1"}


def test_a_stranger_does_not_match_a_row_without_owner() -> None:
    found = rules(policy(allow="data.owner == auth.userId"))
    assert not found.may_read(ANONYMOUS, EMPTY)
    assert found.readable_by(ANONYMOUS) is FALSE


ACTIONS = ("read", "insert", "update", "delete")


def allowed(found: EntityRules, auth: AuthContext = BOB) -> set[str]:
    verdicts = (
        found.may_read(auth, ROW), found.may_insert(auth, ROW), found.may_update(auth, ROW, ROW),
        found.may_delete(auth, ROW),
    )
    return {action for action, passes in zip(ACTIONS, verdicts, strict=True) if passes}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ""),
        ({"allow": "true"}, "read insert update delete"),
        ({"allow_read": "true"}, "read"),
        ({"allow_write": "true"}, "insert update delete"),
        ({"allow_insert": "true"}, "insert"),
        ({"allow_update": "true"}, "update"),
        ({"allow_delete": "true"}, "delete"),
        ({"allow": "true", "allow_read": "false"}, "insert update delete"),
        ({"allow": "true", "allow_write": "false"}, "read"),
        ({"allow": "false", "allow_write": "true"}, "insert update delete"),
        ({"allow_write": "true", "allow_delete": "false", "allow": "true"}, "read insert update"),
        ({"allow": "true", "allow_read": ""}, "read insert update delete"),
    ],
)
def test_the_rule_of_an_action_and_denial_by_default(keys: dict[str, str], expected: str) -> None:
    assert allowed(rules(policy(**keys))) == set(expected.split())


def test_all_policies_must_pass_and_those_without_a_rule_are_skipped() -> None:
    both = rules(policy(allow="data.n == 7"), Policy("q", "Note", allow_read="false"))
    assert allowed(both) == {"insert", "update", "delete"}
    assert allowed(rules(policy(allow="true"), Policy("q", "Note", allow="data.n == 8"))) == set()
    other = compile_rules(
        Manifest("x", "1", (NOTE, Entity("Other", ())), policies=(policy(allow="true"),))
    )
    assert allowed(other.for_entity("Other")) == set()
    with pytest.raises(KeyError):
        other.for_entity("Nope")


def test_an_admin_passes_everything() -> None:
    for found in (rules(), rules(policy(allow="false"))):
        assert allowed(found, ADMIN) == set(ACTIONS)
        assert found.readable_by(ADMIN) is TRUE
        assert found.readable_by(BOB) is FALSE


def test_an_update_rule_without_existing_holds_before_and_after() -> None:
    found = rules(policy(allow_update="data.owner == auth.userId"))
    stolen = ROW | {"owner": "bob"}
    assert found.may_update(ANN, ROW, ROW | {"n": 1})
    assert not found.may_update(ANN, ROW, stolen), "may not give the row away"
    assert not found.may_update(BOB, ROW, stolen), "may not take the row"


def test_an_update_rule_with_existing_judges_the_step() -> None:
    found = rules(policy(allow_update="existing.owner == auth.userId && data.n >= existing.n"))
    assert found.may_update(ANN, ROW, ROW | {"owner": "bob"}), "giving away is allowed here"
    assert not found.may_update(ANN, ROW, ROW | {"n": 6})
    assert not found.may_update(BOB, ROW, ROW | {"owner": "bob"})


def test_update_rules_of_both_sorts_are_all_judged() -> None:
    found = rules(
        policy(allow_update="existing.n < data.n"), Policy("q", "Note", allow_write="data.open")
    )
    closed = ROW | {"open": False}
    assert found.may_update(BOB, ROW, ROW | {"n": 8})
    assert not found.may_update(BOB, ROW, ROW)
    assert not found.may_update(BOB, ROW, closed | {"n": 8})
    assert not found.may_update(BOB, closed, ROW | {"n": 8})


def test_existing_is_null_for_an_insert_and_the_row_for_a_delete() -> None:
    found = rules(policy(allow_insert="existing.n == null && existing.id == null"))
    assert found.may_insert(BOB, ROW)
    assert not rules(policy(allow_insert="existing.n == data.n")).may_insert(BOB, ROW)
    assert rules(policy(allow_delete="existing.n == data.n")).may_delete(BOB, ROW)


def test_a_denial_shows_the_missing_policy_and_it_works() -> None:
    found = rules(policy(allow_read="data.owner == 'secret'"))
    error = found.denied("insert", BOB)
    assert (error.code, error.status) == ("POLICY_DENIED", 403)
    assert error.message == "Access denied by policy"
    assert error.hint is not None and "No policy allows insert on Note" in error.hint
    shown = json.loads(error.hint[error.hint.index("{") : error.hint.index("}") + 1])
    document = {
        "manifest_version": 1, "name": "x", "version": "1", "routes": [], "policies": [shown],
        "entities": [{"name": "Note", "fields": [], "indexes": []}],
    }
    mended = compile_rules(parse_manifest(json.dumps(document), "m.json")).for_entity("Note")
    assert mended.may_insert(BOB, {"id": "r1"}) and not mended.may_insert(ANONYMOUS, {"id": "r1"})
    assert "sign in" in str(found.denied("insert", ANONYMOUS).hint)


def test_a_denial_by_a_rule_shows_nothing_of_it() -> None:
    error = rules(policy(allow_read="data.owner == 'secret'")).denied("read", BOB)
    assert error.hint == "Check your auth token or the policy rules in your schema"
    assert "secret" not in json.dumps(error.body())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, Nobody()),
        ("true", Everyone()),
        ("1 + 1 == 2", Everyone()),
        ("false", Nobody()),
        ("false && data.owner == auth.userId", Nobody()),
        ("auth.userId != null", ByAuth()),
        ("auth.hasRole('lead')", ByAuth()),
        ("data.owner == auth.userId", Keyed("owner", "user_id", True)),
        ("auth.tenant_id == data.org", Keyed("org", "tenant_id", True)),
        ("existing.owner == auth.userId", Keyed("owner", "user_id", True)),
        ("true && data.owner == auth.userId", Keyed("owner", "user_id", True)),
        ("auth.userId != null && data.owner == auth.userId", Keyed("owner", "user_id", False)),
        ("data.open && (data.n > 1 && data.org == auth.tenantId)",
         Keyed("org", "tenant_id", False)),
        ("data.owner == auth.userId || auth.hasRole('lead')", General()),
        ("data.owner != auth.userId", General()),
        ("!(data.owner == auth.userId)", General()),
        ("data.open", General()),
        ("data.owner == 'ann'", General()),
        ("data.owner starts_with auth.userId", General()),
    ],
)
def test_the_routing_plan(rule: str | None, expected: Routing) -> None:
    found = rules(policy(allow_read=rule)) if rule is not None else rules()
    assert found.routing == expected


def test_two_key_rules_route_by_the_first_and_are_not_exact() -> None:
    found = rules(
        policy(allow="data.owner == auth.userId"),
        Policy("q", "Note", allow_read="data.org == auth.tenantId"),
    )
    assert found.routing == Keyed("owner", "user_id", False)


def test_bad_rules_of_a_manifest_made_by_hand_are_all_reported() -> None:
    manifest = Manifest(
        "x", "1", (NOTE,), actions=(Operation("run"),),
        policies=(
            policy(allow="data.nope"),
            Policy("q", action="run", allow="data.n == 1"),
            Policy("fine", "Note", allow="true"),
        ),
    )
    with pytest.raises(ManifestInvalid) as caught:
        compile_rules(manifest)
    assert [d.code for d in caught.value.diagnostics] == ["POLICY_EXPRESSION_INVALID"] * 2
    assert "manifest" in caught.value.message and "(and 1 more)" in caught.value.message


LEVELS = limits.POLICY_DEPTH - 2


@pytest.mark.parametrize(
    ("opening", "closing", "levels"),
    [
        ("!", "", LEVELS),
        ("(data.open == ", ")", LEVELS),
        ("(", " in [data.open])", LEVELS),
        ("(data.open in [", "])", LEVELS // 2),
        ("(", " && data.open) == data.open", LEVELS // 2),
    ],
)
def test_the_deepest_rules_compile_for_python_and_sqlite(
    opening: str, closing: str, levels: int
) -> None:
    found = rules(policy(allow_read=opening * levels + "data.open" + closing * levels))
    with apsw.Connection(":memory:") as store:
        store.execute("CREATE TABLE Note (id, owner, org, due, n, price, open)")
        store.execute("INSERT INTO Note VALUES (1, 'a', 'b', 'c', 1, 2.0, 1)")
        clause = compile_predicate(SQLITE, NOTE, found.readable_by(BOB))
        verdict = store.execute(f"SELECT ({clause.sql}) FROM Note", clause.params).get
    assert bool(verdict) is found.may_read(BOB, ROW)
    assert evaluator_of(found.readable_by(BOB))(ROW) is found.may_read(BOB, ROW)


def test_a_deep_sum_compiles_for_python_and_sqlite() -> None:
    total = "-(" * (LEVELS // 2) + "data.n" + ")" * (LEVELS // 2)
    assert rules(policy(allow_read=f"{total} == -7")).may_read(BOB, ROW)


def test_names_of_the_manifest_never_become_code() -> None:
    fields = [Field(name, FieldType.STRING, True, False) for name in ("__import__", "k1")]
    attack = """data.__import__ == '\\'+__import__("os").system("x")+\\'' || data.k1 == 'd'"""
    evil, rule = Entity("Evil", tuple(fields)), Policy("p", "Evil", allow=attack)
    ruleset = compile_rules(Manifest("x", "1", (evil,), policies=(rule,)))
    assert isinstance(ruleset, RuleSet)
    found = ruleset.for_entity("Evil")
    assert not found.may_read(BOB, {"id": "1", "__import__": "os"})
    assert found.may_read(BOB, {"id": "1", "k1": "d"})


def test_conditions_are_kept_for_a_bounded_number_of_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "READ_RULES_KEPT", 3)
    own = rules(policy(allow_read="auth.userId == data.owner"))
    for number in range(10):
        auth = AuthContext(user_id=f"u{number}")
        first = own.readable_by(auth)
        assert first == equal("owner", f"u{number}")
        assert own.readable_by(AuthContext(user_id=f"u{number}")) is first
        assert len(own._readable) <= 3
