"""Shapes: computes the shape of a predicate, which is the predicate without its values.

Predicates of one shape have the same SQL. A walk through the tree collects the shape as a flat
list, and the parameters in the order in which `predicate_sql` numbers them. Each node begins its
part of the list with a word that determines the rest, so only equal shapes have equal lists.

Invariant: the shape contains everything that the SQL depends on, and no value of a caller. Called
by `compiler` for each query. PERF: so the usual comparison has a walk without further calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from pylon.query.predicate import (
    Affix,
    And,
    Arithmetic,
    Column,
    Compare,
    CompareTuple,
    Constant,
    Element,
    Exists,
    Guarded,
    HasMember,
    InValues,
    IsNull,
    Like,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Outer,
    Predicate,
    Value,
)
from pylon.storage.sqlite.patterns import like_parts
from pylon.storage.sqlite.search import match_expression

Shape = list[object]
Params = list[object]
_LAST_CHARACTER: Final = "\U0010ffff"


def collect_shape(predicate: Predicate, shape: Shape, params: Params) -> None:
    """Append the shape and the parameters of a predicate that is not a constant."""
    WALKS[type(predicate)](predicate, shape, params)


def _walk_compare(node: Compare, shape: Shape, params: Params) -> None:
    left, right = node.left, node.right
    if type(left) is Column and type(right) is Literal:
        value = right.value
        shape += (node.sign, left.field)
        params.append(int(value) if value is True or value is False else value)
        return
    shape += ("compare", node.sign)
    _walk_value(left, shape, params)
    _walk_value(right, shape, params)


def _walk_compare_tuple(node: CompareTuple, shape: Shape, params: Params) -> None:
    if node.values == (None,):
        shape += ("above null", node.fields)
        return
    shape += ("tuple", node.is_below, node.fields)
    params += [int(value) if isinstance(value, bool) else value for value in node.values]


def _walk_is_null(node: IsNull, shape: Shape, params: Params) -> None:
    shape.append("null")
    _walk_value(node.operand, shape, params)


def _walk_one_of(node: OneOf, shape: Shape, params: Params) -> None:
    shape += ("one of", len(node.options))
    _walk_value(node.item, shape, params)
    for option in node.options:
        _walk_value(option, shape, params)


def _walk_in_values(node: InValues, shape: Shape, params: Params) -> None:
    shape += ("in", node.field, node.has_null, node.is_negated)
    params.append(orjson.dumps(node.values).decode())


def _walk_affix(node: Affix, shape: Shape, params: Params) -> None:
    text, part = node.text, node.affix
    if type(text) is Column and type(part) is Literal and not node.at_end:
        low, behind = prefix_range(str(part.value))
        if behind is None:
            shape += ("from", text.field)
            params.append(low)
        else:
            shape += ("between", text.field)
            params += (low, behind)
        return
    shape += ("affix", node.at_end)
    if type(text) is Literal:
        shape.append("bytes")
        params.append(str(text.value).encode())
    else:
        _walk_value(text, shape, params)
    if type(part) is Literal:
        encoded = str(part.value).encode()
        shape.append("bytes")
        params += (encoded, len(encoded))
    else:
        _walk_value(part, shape, params)


def _walk_like(node: Like, shape: Shape, params: Params) -> None:
    form, param = like_parts(node)
    shape += ("like", form, node.field)
    params.append(param)


def _walk_match(node: Match, shape: Shape, params: Params) -> None:
    shape.append("match")
    params.append(match_expression(node))


def _walk_has_member(node: HasMember, shape: Shape, params: Params) -> None:
    shape += ("has member", node.field)
    params += (_path_text(node.path), orjson.dumps(node.member).decode())


def _path_text(path: tuple[str, ...]) -> str:
    return orjson.dumps(path).decode()


def _walk_not(node: Not, shape: Shape, params: Params) -> None:
    shape.append("not")
    WALKS[type(node.operand)](node.operand, shape, params)


def _walk_items(node: And | Or, shape: Shape, params: Params) -> None:
    shape += (type(node), len(node.items))
    for item in node.items:
        WALKS[type(item)](item, shape, params)


def _walk_guarded(node: Guarded, shape: Shape, params: Params) -> None:
    shape.append("guarded")
    WALKS[type(node.allowed)](node.allowed, shape, params)
    WALKS[type(node.wanted)](node.wanted, shape, params)


def _walk_exists(node: Exists, shape: Shape, params: Params) -> None:
    shape += ("exists", node.entity, node.is_listable)
    if type(node.where) is Constant:
        shape.append("any row")
    else:
        WALKS[type(node.where)](node.where, shape, params)


WALKS: Final[dict[type, Callable[[Any, Shape, Params], None]]] = {
    Compare: _walk_compare, CompareTuple: _walk_compare_tuple, IsNull: _walk_is_null,
    OneOf: _walk_one_of, InValues: _walk_in_values, Affix: _walk_affix, Like: _walk_like,
    HasMember: _walk_has_member, Match: _walk_match, Not: _walk_not, And: _walk_items,
    Or: _walk_items, Guarded: _walk_guarded, Exists: _walk_exists,
}


def _walk_value(value: Value, shape: Shape, params: Params) -> None:
    if type(value) is Column:
        shape += ("column", value.field)
    elif type(value) is Outer:
        shape += ("outer", value.field, value.depth)
    elif type(value) is Literal:
        shape.append("value")
        params.append(int(value.value) if isinstance(value.value, bool) else value.value)
    elif type(value) is Element:
        shape += ("element", value.field)
        params += (_path_text(value.path), value.kind)
    elif type(value) is Arithmetic:
        shape += ("arithmetic", value.op)
        _walk_value(value.left, shape, params)
        _walk_value(value.right, shape, params)
    else:
        WALKS[type(value)](value, shape, params)


def prefix_range(prefix: str) -> tuple[str, str | None]:
    """Return the range of the texts that begin with `prefix`, which an index can serve.

    It goes from the first text up to the second, exclusive; None: no end. SQLite orders texts by
    code point.
    """
    rest = prefix.rstrip(_LAST_CHARACTER)
    if not rest:
        return prefix, None
    following = ord(rest[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are not characters
        following = 0xE000
    return prefix, rest[:-1] + chr(following)
