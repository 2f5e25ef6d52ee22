"""Shapes: computes the shape of a predicate, which is the predicate without its values.

Predicates of one shape have the same SQL. A walk through the tree collects the shape as a flat
list, and the parameters in the order in which `predicate_sql` numbers them. Each node begins its
part of the list with a word that determines the rest, so only equal shapes have equal lists.

This module walks the nodes that have parts, and patterns; a dialect walks the others whose values
become parameters, since each store has its own forms of them.

Invariant: the shape contains everything that the SQL depends on, and no value of a caller. Made
by the dialects, called by `compiler` for each query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pylon.query.predicate import (
    Affix,
    And,
    Arithmetic,
    Column,
    Constant,
    Exists,
    Guarded,
    IsNull,
    Like,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Outer,
)

Shape = list[object]
Params = list[object]
Walk = Callable[[Any, Shape, Params], None]
Walks = dict[type, Walk]
_LAST_CHARACTER: Final = "\U0010ffff"


def complete_walks(
    own: Mapping[type, Walk], like_parts: Callable[[Like], tuple[str, str]],
    match_expression: Callable[[Match], str], walk_operands: Walk | None = None,
) -> Walks:
    """Return the walk of each type of node.

    Args:
        own: those of the dialect, for conditions on values, literals and elements.
        like_parts: the form of a pattern, and its parameter.
        match_expression: the parameter of a full-text match.
        walk_operands: of an affix that is no prefix of a column; None: as the operands say.
    """
    walks: Walks = {}

    def walk_affix(node: Affix, shape: Shape, params: Params) -> None:
        prefix = prefix_of(node)
        if prefix is None:
            shape += ("affix", node.at_end)
            (walk_operands or walk_both)(node, shape, params)
            return
        low, behind = prefix_range(prefix[1])
        if behind is None:
            shape += ("from", prefix[0])
            params.append(low)
        else:
            shape += ("between", prefix[0])
            params += (low, behind)

    def walk_both(node: Affix, shape: Shape, params: Params) -> None:
        walks[type(node.text)](node.text, shape, params)
        walks[type(node.affix)](node.affix, shape, params)

    def walk_like(node: Like, shape: Shape, params: Params) -> None:
        form, param = like_parts(node)
        shape += ("like", form, node.field)
        params.append(param)

    def walk_match(node: Match, shape: Shape, params: Params) -> None:
        shape.append("match")
        params.append(match_expression(node))

    def walk_is_null(node: IsNull, shape: Shape, params: Params) -> None:
        shape.append("null")
        walks[type(node.operand)](node.operand, shape, params)

    def walk_one_of(node: OneOf, shape: Shape, params: Params) -> None:
        shape += ("one of", len(node.options))
        walks[type(node.item)](node.item, shape, params)
        for option in node.options:
            walks[type(option)](option, shape, params)

    def walk_not(node: Not, shape: Shape, params: Params) -> None:
        shape.append("not")
        walks[type(node.operand)](node.operand, shape, params)

    def walk_items(node: And | Or, shape: Shape, params: Params) -> None:
        shape += (type(node), len(node.items))
        for item in node.items:
            walks[type(item)](item, shape, params)

    def walk_guarded(node: Guarded, shape: Shape, params: Params) -> None:
        shape.append("guarded")
        walks[type(node.allowed)](node.allowed, shape, params)
        walks[type(node.wanted)](node.wanted, shape, params)

    def walk_exists(node: Exists, shape: Shape, params: Params) -> None:
        shape += ("exists", node.entity, node.is_listable)
        if type(node.where) is Constant:
            shape.append("any row")
        else:
            walks[type(node.where)](node.where, shape, params)

    def walk_arithmetic(node: Arithmetic, shape: Shape, params: Params) -> None:
        shape += ("arithmetic", node.op)
        walks[type(node.left)](node.left, shape, params)
        walks[type(node.right)](node.right, shape, params)

    walks |= {
        IsNull: walk_is_null, OneOf: walk_one_of, Not: walk_not, And: walk_items, Or: walk_items,
        Guarded: walk_guarded, Exists: walk_exists, Arithmetic: walk_arithmetic,
        Affix: walk_affix, Like: walk_like, Match: walk_match,
        Column: _walk_column, Outer: _walk_outer, **own,
    }
    return walks


def _walk_column(node: Column, shape: Shape, _: Params) -> None:
    shape += ("column", node.field)


def _walk_outer(node: Outer, shape: Shape, _: Params) -> None:
    shape += ("outer", node.field, node.depth)


def prefix_of(node: Affix) -> tuple[str, str] | None:
    """Return a column and the literal that its texts begin with, if an affix says just that: an
    index serves it."""
    if type(node.text) is Column and type(node.affix) is Literal and not node.at_end:
        return node.text.field, str(node.affix.value)
    return None


def prefix_range(prefix: str) -> tuple[str, str | None]:
    """Return the range of the texts that begin with `prefix`, which an index can serve.

    It goes from the first text up to the second, exclusive; None: no end. Stores order texts by
    code point.
    """
    rest = prefix.rstrip(_LAST_CHARACTER)
    if not rest:
        return prefix, None
    following = ord(rest[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are not characters
        following = 0xE000
    return prefix, rest[:-1] + chr(following)
