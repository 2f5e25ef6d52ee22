"""Shapes of queries as text for people: the condition and the order, without any value.

`describe` writes the tree of a condition with ``?`` for each value, and for each path in a JSON
field, since clients choose those. What the caller's read policy adds stands in ``policy(...)``.

Invariant: the text has names of the manifest and operators only. Called by
`pylon.api.data.query_watch` for its log lines.
"""

from __future__ import annotations

from collections.abc import Iterable

from pylon.query.position import Order
from pylon.query.predicate import (
    TRUE,
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


def describe(where: Predicate, order: Order = ()) -> str:
    """Return a condition and an order as text, without values."""
    text = _text(where)
    if order:
        fields = ", ".join(f"{field} desc" if is_down else field for field, is_down in order)
        text += f" order by {fields}"
    return text


def _text(node: Value) -> str:
    match node:
        case Column(field=field):
            return field
        case Outer(field=field):
            return f"outer.{field}"
        case Element(field=field):
            return f"{field}[?]"
        case Literal():
            return "?"
        case Constant(holds=holds):
            return "true" if holds else "false"
        case Arithmetic(op=op, left=left, right=right):
            return f"({_text(left)} {op} {_text(right)})"
        case Compare(sign=sign, left=left, right=right):
            return f"{_text(left)} {sign} {_text(right)}"
        case CompareTuple(fields=fields, is_below=is_below):
            return f"({', '.join(fields)}) {'<' if is_below else '>'} ?"
        case IsNull(operand=operand):
            return f"{_text(operand)} is null"
        case OneOf(item=item, options=options):
            return f"{_text(item)} in ({', '.join(map(_text, options))})"
        case InValues(field=field, is_negated=is_negated):
            return f"{field} {'not in' if is_negated else 'in'} (?)"
        case Affix(at_end=at_end, text=text, affix=affix):
            return f"{_text(text)} {'ends' if at_end else 'begins'} with {_text(affix)}"
        case Like(field=field):
            return f"{field} like ?"
        case HasMember(field=field):
            return f"{field}[?] has ?"
        case Match():
            return "words ?"
        case Not(operand=operand):
            return f"not ({_text(operand)})"
        case And(items=items):
            return _joined(" and ", items)
        case Or(items=items):
            return _joined(" or ", items)
        case Guarded(allowed=allowed, wanted=wanted):
            rest = "" if wanted == TRUE else f" and {_text(wanted)}"
            return f"policy({_text(allowed)}){rest}"
        case Exists(entity=entity, where=inner):
            return f"exists {entity}({_text(inner)})"


def _joined(word: str, items: Iterable[Predicate]) -> str:
    return f"({word.join(map(_text, items))})"
