"""Shapes: computes the shape of a predicate, which is the predicate without its values.

Predicates of one shape have the same SQL. A walk through the tree collects the shape as a flat
list, and the parameters in the order in which `predicate_sql` numbers them. Each node begins its
part of the list with a word that determines the rest, so only equal shapes have equal lists.

This module walks the nodes that have parts; a dialect walks those whose values become parameters,
since each store has its own forms of them.

Invariant: the shape contains everything that the SQL depends on, and no value of a caller. Made
by the dialects, called by `compiler` for each query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pylon.query.predicate import (
    And,
    Arithmetic,
    Column,
    Constant,
    Exists,
    Guarded,
    IsNull,
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


def complete_walks(own: Mapping[type, Walk]) -> Walks:
    """Return the walk of each type of node.

    Args:
        own: those of the dialect, for conditions on values, literals and elements.
    """
    walks: Walks = {}

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
        Column: _walk_column, Outer: _walk_outer, **own,
    }
    return walks


def _walk_column(node: Column, shape: Shape, _: Params) -> None:
    shape += ("column", node.field)


def _walk_outer(node: Outer, shape: Shape, _: Params) -> None:
    shape += ("outer", node.field, node.depth)


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
