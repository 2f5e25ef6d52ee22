"""Checker of ``exists(...)``: its entity, its comparisons, and the index that it needs.

A rule asks other rows for each row that it judges, so an index must find them by the equalities
that depend on the caller or on the judged row. Without one the manifest is refused.

Bounds: `limits.POLICY_EXISTS` in one rule, nested two levels deep. Called by `check`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from pylon import limits
from pylon.manifest.model import Entity
from pylon.policy import expression as e
from pylon.policy.expression import Expr, Kind, kind_of
from pylon.policy.grammar import PolicyIndexMissing, PolicyInvalid, Syntax
from pylon.policy.kinds import ORDERED, VALUES, align_literal, are_texts, refuse_list
from pylon.policy.scope import AUTH_ATTRIBUTES, Scope, kinds_of_row, list_names

_EXISTS_FORM = "exists(Entity, field == data.field, other == auth.userId)"
_COMPARED = ("==", "!=", "<", "<=", ">", ">=", "in")


class ExistsChecker:
    """Checks every ``exists(...)`` of one rule, and counts them."""

    __slots__ = ("_count", "_scope", "_value_of")

    def __init__(self, scope: Scope, value_of: Callable[[Syntax], Expr]) -> None:
        """
        Args:
            value_of: checks a value on the right side of a comparison.
        """
        self._scope = scope
        self._value_of = value_of
        self._count = 0

    def check(self, node: Syntax, around: Entity | None = None) -> e.Exists:
        """Return the expression of ``exists(...)``.

        Args:
            around: the entity of the `exists` that it stands in.
        """
        self._count += 1
        if self._count > limits.POLICY_EXISTS:
            raise PolicyInvalid(
                f"a rule has {limits.POLICY_EXISTS} exists(...) at most", node.at
            )
        entity = self._asked_entity(node)
        comparisons: list[e.Comparison] = []
        nested: list[e.Exists] = []
        for arg in node.args[1:]:
            if arg.op == "call" and arg.value == "exists":
                if around is not None:
                    raise PolicyInvalid("exists nests two levels deep at most", arg.at)
                nested.append(self.check(arg, entity))
            else:
                comparisons.append(self._comparison(arg, entity, around))
        listable = _index_use(entity, comparisons, node.at)
        is_listable = listable or any(
            inner.is_listable and _leads_to(entity, inner) for inner in nested
        )
        return e.Exists(entity.name, tuple(comparisons), tuple(nested), is_listable)

    def _asked_entity(self, node: Syntax) -> Entity:
        if len(node.args) < 2 or node.args[0].op != "word":
            raise PolicyInvalid(
                f"exists takes an entity and one comparison or more: {_EXISTS_FORM}", node.at
            )
        name = str(node.args[0].value)
        entity = self._scope.entities.get(name)
        if entity is None:
            known = list_names(self._scope.entities, name)
            raise PolicyInvalid(f'unknown entity "{name}" (known: {known})', node.args[0].at)
        return entity

    def _comparison(
        self, node: Syntax, entity: Entity, around: Entity | None
    ) -> e.Comparison:
        """Return the comparison of a field of the looked-for row."""
        if node.op not in _COMPARED:
            raise PolicyInvalid(
                f"exists takes comparisons of a field of {entity.name}, as in {_EXISTS_FORM};"
                " write a boolean field as isOpen == true", node.at,
            )
        left, right = node.args
        name, kinds = str(left.value), kinds_of_row(entity)
        if left.op != "word" or name not in kinds:
            shown = f'"{name}"' if left.op == "word" else "this"
            raise PolicyInvalid(
                f"the left side of a comparison is a field of {entity.name}, and {shown} is none"
                f" (known: {list_names(kinds, name)})", left.at,
            )
        if node.op != "in":
            option = align_literal(self._option(right, around), kinds[name], right)
            self._fits(name, kinds[name], option, node.op, right.at)
            return e.Comparison(name, node.op, (option,), kinds[name].notation)
        if right.op != "list":
            if right.op != "word" or right.value != "auth.roles":
                raise PolicyInvalid("the right side of 'in' is a list or auth.roles", right.at)
            if kinds[name] is not Kind.STRING:
                raise PolicyInvalid(f"roles are strings, {name} is a {kinds[name].value}", left.at)
            return e.Comparison(name, "in", (AUTH_ATTRIBUTES["roles"],))
        options = [
            align_literal(self._option(arg, around), kinds[name], arg) for arg in right.args
        ]
        for arg, option in zip(right.args, options, strict=True):
            self._fits(name, kinds[name], option, "in", arg.at)
        return e.Comparison(name, "in", tuple(options), kinds[name].notation)

    def _option(self, node: Syntax, around: Entity | None) -> Expr:
        """Return the right side of a comparison in an ``exists(...)``."""
        if around is not None and node.op == "word":
            root, _, name = str(node.value).partition(".")
            if root == around.name and name:
                kinds = kinds_of_row(around)
                if name not in kinds:
                    raise PolicyInvalid(
                        f'unknown field "{name}" of {root} (known: {list_names(kinds, name)})',
                        node.at + len(root) + 1,
                    )
                return e.Related(name, kinds[name])
        found = self._value_of(node)
        if not isinstance(found, VALUES):
            raise PolicyInvalid(
                "the right side of a comparison in exists is a field of a row, an attribute of"
                " auth or a constant", node.at,
            )
        refuse_list(found, node)
        return found

    def _fits(self, name: str, kind: Kind, option: Expr, op: str, at: int) -> None:
        other = kind_of(option)
        if other is Kind.NULL:
            if op not in ("==", "!=", "in"):
                raise PolicyInvalid("null has no order, write == null or != null", at)
        elif kind is Kind.JSON or (other is not kind and not are_texts(kind, other)):
            raise PolicyInvalid(
                f"{name} is a {kind.value}, and a {other.value} is never equal to it and has no"
                " order with it", at,
            )
        elif op not in ("==", "!=", "in") and kind not in ORDERED:
            raise PolicyInvalid(f"{op} orders numbers and strings, {name} is a {kind.value}", at)


def _index_use(entity: Entity, comparisons: Iterable[e.Comparison], at: int) -> bool:
    """Return whether an index finds the rows by what does not depend on the judged row.

    Raises:
        PolicyIndexMissing: no index finds them by all equalities.
    """
    by_caller: list[str] = []
    by_row: list[str] = []
    constant: list[str] = []
    for part in comparisons:
        if part.op == "==":
            option = part.options[0]
            fields = constant
            if isinstance(option, e.Auth):
                fields = by_caller
            elif not isinstance(option, e.Literal):
                fields = by_row
            if part.field not in (*by_caller, *by_row, *constant):
                fields.append(part.field)
    wanted = (*by_caller, *by_row)
    if not wanted and not constant:
        raise PolicyInvalid(
            f"exists compares one field of {entity.name} or more by ==, so that an index finds the"
            f" row: {_EXISTS_FORM}", at,
        )
    compared = {*wanted, *constant}
    has_key = "id" in compared or any(f.unique for f in entity.fields if f.name in compared)
    unique = [i.fields for i in entity.indexes if i.unique and i.where is None]
    # The rows of the caller, and the row of the caller for the judged one.
    is_listable = is_found = False
    for columns in entity.index_columns:
        first = columns[:_leading(columns, compared)]
        # Constants alone: one of them is enough.
        if first and {*first}.issuperset(wanted):
            is_found = True
        listing = columns[:_leading(columns, {*by_caller, *constant})]
        if by_caller and {*listing}.issuperset(by_caller):
            is_listable = True
    is_found = is_found or any(compared.issuperset(columns) for columns in unique)
    if has_key or (is_found and (is_listable or not by_caller)):
        return is_listable
    names = wanted or tuple(constant[:1])
    line = json.dumps({"name": "by_" + "_".join(names), "fields": names, "unique": False})
    order = ""
    if by_caller and by_row:
        order = (
            " The fields compared with the caller come first, so that the index also lists the"
            " caller's rows."
        )
    raise PolicyIndexMissing(
        f"exists needs an index: add {line} to the indexes of {entity.name}.{order}"
        " Without it each verdict would read the whole table.", at,
    )


def _leading(columns: tuple[str, ...], known: set[str]) -> int:
    """Return how many of the first columns are known."""
    return next((n for n, name in enumerate(columns) if name not in known), len(columns))


def _leads_to(entity: Entity, inner: e.Exists) -> bool:
    """Return whether an index of the entity finds the rows that a nested `exists` leads to."""
    first = {columns[0] for columns in entity.index_columns}
    return any(
        isinstance(part.options[0], e.Related) and part.options[0].field in first
        for part in inner.comparisons if part.op == "=="
    )
