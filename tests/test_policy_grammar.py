"""What is a rule and what is not, and at which character it is said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.manifest.model import Entity, Field, FieldType, Operation
from pylon.policy.check import check
from pylon.policy.grammar import PolicyInvalid, Syntax, parse
from pylon.policy.scope import action_scope, entity_scope
from tests.support.examples import count_examples

NOTE = Entity(
    "Note",
    (
        Field("owner", FieldType.ID, False, False, "User"),
        Field("due", FieldType.DATETIME, True, False),
        Field("body", FieldType.RICHTEXT, True, False),
        Field("n", FieldType.INT, True, False),
        Field("price", FieldType.FLOAT, True, False),
        Field("open", FieldType.BOOL, False, False),
    ),
)
SCOPE = entity_scope(NOTE)


def shown(node: Syntax) -> str:
    """The tree with all its brackets."""
    if not node.args and node.op not in ("call", "list"):
        return repr(node.value) if node.op == "string" else str(node.value)
    inner = " ".join(shown(arg) for arg in node.args)
    return f"({node.value if node.op == 'call' else node.op}{' ' if inner else ''}{inner})"


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a || b && c || d", "(|| a (&& b c) d)"),
        ("(a || b) && c", "(&& (|| a b) c)"),
        ("!a == b", "(== (not a) b)"),
        ("!(a == b)", "(not (== a b))"),
        ("!!a", "(not (not a))"),
        ("a + b * c - d", "(- (+ a (* b c)) d)"),
        ("a % b / c", "(/ (% a b) c)"),
        ("- a * -b", "(* (negative a) (negative b))"),
        ("a - -1", "(- a (negative 1))"),
        ("a + 1 < b && c", "(&& (< (+ a 1) b) c)"),
        ("a in ['x', \"y\"]", "(in a (list 'x' 'y'))"),
        ("a in []", "(in a (list))"),
        ("a in auth.roles", "(in a auth.roles)"),
        ("a starts_with 'x' || b", "(|| (starts_with a 'x') b)"),
        ("starts_with(a, 'x') && ends_with(b, c)", "(&& (starts_with a 'x') (ends_with b c))"),
        ("a ends_with ('x')", "(ends_with a 'x')"),
        ("f()", "(f)"),
        (" \t\r\na\n", "a"),
        ("1.5e3 < 10", "(< 1500.0 10)"),
        (r"'\\\"\'\n\r\t\0' == " + '"it\'s"', r"""(== '\\"\'\n\r\t\x00' "it's")"""),
        ("a_1.B2 == null", "(== a_1.B2 null)"),
        ("data.in == 1", "(== data.in 1)"),
    ],
)
def test_trees(text: str, tree: str) -> None:
    assert shown(parse(text)) == tree


@pytest.mark.parametrize(
    "text",
    [
        "auth.userId == data.owner",
        "auth.user_id != null && auth.tenant_id == existing.owner",
        "auth.isAdmin || auth.is_guest == false || auth.isGuest || auth.is_admin",
        "data.due < '2026-01-01'",
        "data.n + 1 >= data.price * 2.5",
        "data.n in [1, 2.5, data.price, null]",
        "data.owner in auth.roles",
        "auth.hasAnyRole('a', 'b') || auth.hasRole(\"c\")",
        "data.open",
        "data.body",
        "data.n",
        "(data.n == 1) == data.open",
        "data.id starts_with auth.userId",
        "null == null",
        "data.open == null",
        "-data.n % 2 == 0",
        "true",
    ],
)
def test_good_rules(text: str) -> None:
    assert check(text, SCOPE) is not None


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        # the bad character is behind the mark ^
        ("^", "end of the expression"),
        ("  ^", "end of the expression"),
        ("data.open ^&", "write '&&'"),
        ("data.open ^and true", "write '&&'"),
        ("data.open ^| true", "write '||'"),
        ("^not data.open", "write '!'"),
        ("data.n ^= 1", "write '=='"),
        ("data.n ^=== 1", "write '=='"),
        ("data.open == ^True", "write 'true'"),
        ("data.n == 1 ^data.n", "expected an operator"),
        ("data.n == 1 ^== true", "do not chain"),
        ("1 < data.n ^< 3", "do not chain"),
        ("(data.open^", "expected ')'"),
        ("data.n in [1, 2^", "expected ']'"),
        ("data.n in [1,^]", "expected a value"),
        ("data.n == ^)", "expected a value"),
        ("data.n == ^§", "unexpected character"),
        ("data.n == ^\uff11", "unexpected character"),
        ("data.owner == ^'abc", "not closed"),
        ("data.owner == 'a^\\x'", "unknown escape"),
        ("data.owner == 'a^\\", "unknown escape"),
        ("data.n == 1^x", "after '1'"),
        ("data.n == 1^.", "after '1'"),
        ("data^. == 1", "after 'data'"),
        ("data.n == ^9223372036854775808", "larger than"),
        ("data.n == ^" + "9" * 5000, "larger than"),
        ("data.n == ^1e999", "too large"),
        ("^in", "expected a value"),
        # names
        ("^nope == 1", "known: auth, data, existing"),
        ("^input.x == 1", "known: auth, data, existing"),
        ("^owner == auth.userId", 'unknown name "owner"'),
        ("data.^nope == 1", "known: id, owner, due, body, n, price, open"),
        ("auth.^email == 'x'", "known: userId, user_id"),
        ("data^ == 1", "names no attribute"),
        ("data^.owner.name == 'x'", "goes deeper"),
        ("auth^.userId.x == 'x'", "goes deeper"),
        ("^matches(data.owner, 'x')", "known: auth.hasRole"),
        # kinds
        ("data.n ^== 'x'", "a number and a string"),
        ("data.open ^!= 1", "a boolean and a number"),
        ("data.n in [1, ^'x']", "a number and a string"),
        ("data.due ^< 5", "a datetime and a number"),
        ("data.due < ^'yesterday'", "compared with a datetime and is none"),
        ("data.due in [null, ^'']", "compared with a datetime and is none"),
        ("^data.open < true", "orders numbers and strings"),
        ("data.n < ^null", "orders numbers and strings"),
        ("data.n + ^data.owner == 1", "works on numbers"),
        ("^'a' + 'b' == 'ab'", "works on numbers"),
        ("-^data.open == 1", "works on numbers"),
        ("starts_with(data.n^, 'x')".replace("data.n^", "^data.n"), "takes strings"),
        ("data.owner ends_with ^null", "takes strings"),
        ("^starts_with(data.owner)", "two arguments"),
        ("^auth.hasRole()", "one role"),
        ("^auth.hasRole('a', 'b')", "one role"),
        ("^auth.hasAnyRole()", "one or more"),
        ("auth.hasRole(^data.owner)", "written as strings"),
        ("^data.n in auth.roles", "roles are strings"),
        ("data.owner in ^data.owner", "a list or auth.roles"),
        ("^auth.roles in auth.roles", "is a list"),
        ("^auth.roles == null", "is a list"),
        ("'x' == ^auth.roles", "is a list"),
        ("^auth.roles", "not a condition"),
        ("true && ^null", "not a condition"),
        ("!^auth.roles", "not a condition"),
        ("^[1, 2]", "right of 'in'"),
        ("(data.n == 1) ^== null", "never null"),
    ],
)
def test_bad_rules_and_the_character_to_blame(marked: str, message: str) -> None:
    at = marked.index("^")
    with pytest.raises(PolicyInvalid) as caught:
        check(marked.replace("^", "", 1), SCOPE)
    assert message in caught.value.message
    assert caught.value.at == at


def test_an_action_has_input_and_no_row() -> None:
    scope = action_scope(Operation("pay", (Field("amount", FieldType.INT, False, False),)))
    assert check("input.amount > 0 && auth.userId != null", scope) is not None
    with pytest.raises(PolicyInvalid, match=r"known: auth, input"):
        check("data.amount > 0", scope)
    with pytest.raises(PolicyInvalid, match="known: amount"):
        check("input.id == 'x'", scope)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("(", ")"), ("!", ""), ("!(", ")"), ("(1 == 1) == (", ")")],
)
def test_nesting_is_bounded(opening: str, closing: str) -> None:
    levels = limits.POLICY_DEPTH // 2 - 2
    assert check(opening * levels + "data.open" + closing * levels, SCOPE) is not None
    for levels in (limits.POLICY_DEPTH + 1, 1000):
        with pytest.raises(PolicyInvalid, match=f"deeper than {limits.POLICY_DEPTH}"):
            check(opening * levels + "data.open" + closing * levels, SCOPE)


def test_a_sum_is_bounded_but_a_chain_is_not() -> None:
    with pytest.raises(PolicyInvalid, match="deeper"):
        parse("1" + " + 1" * (limits.POLICY_DEPTH + 1))
    assert len(parse("a" + " && a" * 1000).args) == 1001


def test_an_expression_has_a_greatest_length() -> None:
    with pytest.raises(PolicyInvalid, match="longer than") as caught:
        parse(" " * limits.POLICY_CHARS + "a")
    assert caught.value.at == limits.POLICY_CHARS


PIECES = [
    "data.", "auth.", "existing.", "owner", "n", "open", "userId", "roles", "hasRole", "(", ")",
    "[", "]", "'", '"', "\\", " ", "==", "!=", "!", "<", "-", "+", "%", "in", "starts_with", ",",
    "null", "true", "1", "1.5", "&&", "||", "\0", "ä", "𝟙", "data.owner", "data.n", "auth.userId",
]


@settings(max_examples=count_examples(1000))
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=30))
def test_any_text_is_a_rule_or_a_policy_error(text: str) -> None:
    try:
        check(text, SCOPE)
    except PolicyInvalid as invalid:
        assert 0 <= invalid.at <= len(text)
        assert invalid.message
