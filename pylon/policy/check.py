"""Checker: resolves names and kinds, and turns syntax into a typed expression.

Each error has the offset of its character. Invariant: the checker finds every fault of a rule at
start, so a rule that passes cannot fail while it judges a row.
Called by `rules` and `pylon.manifest_loader`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from pylon import limits
from pylon.manifest.model import Entity, Field, FieldType, Operation
from pylon.policy import expression as e
from pylon.policy.expression import Expr, Kind, Root, kind_of
from pylon.policy.grammar import PolicyIndexMissing, PolicyInvalid, Syntax, parse
from pylon.values.datetimes import instant_of, is_date
from pylon.values.decimals import decimal_of, sort_text_of

_AUTH: dict[str, e.Auth] = {
    "userId": e.Auth("user_id", Kind.STRING),
    "user_id": e.Auth("user_id", Kind.STRING),
    "isAdmin": e.Auth("is_admin", Kind.BOOL),
    "is_admin": e.Auth("is_admin", Kind.BOOL),
    "isGuest": e.Auth("is_guest", Kind.BOOL),
    "is_guest": e.Auth("is_guest", Kind.BOOL),
    "tenantId": e.Auth("tenant_id", Kind.STRING),
    "tenant_id": e.Auth("tenant_id", Kind.STRING),
    "roles": e.Auth("roles", Kind.LIST),
}
_KIND_OF_TYPE = {
    FieldType.STRING: Kind.STRING,
    FieldType.RICHTEXT: Kind.STRING,
    FieldType.DATETIME: Kind.DATETIME,
    FieldType.ID: Kind.STRING,
    FieldType.ENUM: Kind.STRING,
    FieldType.DATE: Kind.DATE,
    FieldType.DECIMAL: Kind.DECIMAL,
    FieldType.JSON: Kind.JSON,
    FieldType.INT: Kind.NUMBER,
    FieldType.FLOAT: Kind.NUMBER,
    FieldType.BOOL: Kind.BOOL,
}
_TEXTS = frozenset({Kind.STRING, Kind.DATETIME, Kind.DATE})
_ORDERED = _TEXTS | {Kind.NUMBER, Kind.DECIMAL}
_VALUES = (e.Column, e.Auth, e.Literal)
_FUNCTIONS = "auth.hasRole, auth.hasAnyRole, starts_with, ends_with, exists"
_EXISTS_FORM = "exists(Entity, field == data.field, other == auth.userId)"
_COMPARED = ("==", "!=", "<", "<=", ">", ">=", "in")


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that a rule may use.

    `subject` appears in messages; `roots` maps each root to its fields; `entities` are those that
    ``exists(...)`` may ask, by name.
    """

    subject: str
    roots: Mapping[Root, Mapping[str, Kind]]
    entities: Mapping[str, Entity] = field(default_factory=dict)


def entity_scope(entity: Entity, entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of an entity's rules: ``data`` and ``existing`` are rows of it."""
    columns = _kinds_of_row(entity)
    roots: dict[Root, Mapping[str, Kind]] = {"data": columns, "existing": columns}
    return Scope(f'entity "{entity.name}"', roots, entities or {})


def action_scope(action: Operation, entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of an action's rules: ``input``, and no row."""
    return Scope(f'action "{action.name}"', {"input": _kinds(action.input)}, entities or {})


def room_scope(entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of rules of rooms: ``room``, by its name and by what ``*`` stands for."""
    names = {"id": Kind.STRING, "name": Kind.STRING}
    return Scope("a room pattern", {"room": names}, entities or {})


def row_scope(
    row: Mapping[str, object], entities: Mapping[str, Entity] | None = None
) -> Scope:
    """Return the scope of rules about rows of no known entity, with the kinds of a row's values.

    A null counts as a text.
    """
    kinds = {name: _kind_of_value(value) for name, value in row.items()}
    return Scope("the row", {"data": kinds, "existing": kinds}, entities or {})


def _kind_of_value(value: object) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, int | float):
        return Kind.NUMBER
    return Kind.STRING if value is None or isinstance(value, str) else Kind.JSON


def check(text: str, scope: Scope) -> Expr:
    """Return the typed expression of a rule.

    Raises:
        PolicyInvalid: bad syntax, an unknown name, or kinds that do not fit.
    """
    return _Checker(scope).condition(parse(text))


def _kinds(fields: Iterable[Field]) -> dict[str, Kind]:
    return {field.name: _KIND_OF_TYPE[field.type] for field in fields}


def _kinds_of_row(entity: Entity) -> dict[str, Kind]:
    return {"id": Kind.STRING, **_kinds(entity.fields)}


def _aligned(expr: Expr, other: Kind, place: Syntax) -> Expr:
    """Return a literal in the notation that the other side of a comparison has.

    Raises:
        PolicyInvalid: the literal is no value of the other side.
    """
    if not isinstance(expr, e.Literal) or other not in _LITERALS:
        return expr
    if expr.kind is not Kind.STRING and (expr.kind, other) != (Kind.NUMBER, Kind.DECIMAL):
        return expr
    convert, example = _LITERALS[other]
    found = convert(str(expr.value))
    if found is None:
        raise PolicyInvalid(
            f'"{expr.value}" is compared with a {other.value} and is none; write for example '
            f"{example}, or null",
            place.at,
        )
    return e.Literal(found, other)


def _are_texts(a: Kind, b: Kind) -> bool:
    """Whether both are texts that may be compared; a date and a datetime never are."""
    return {a, b} <= _TEXTS and {a, b} != {Kind.DATE, Kind.DATETIME}


def _date_literal(text: str) -> str | None:
    return text if is_date(text) else None


def _decimal_literal(text: str) -> str | None:
    plain = f"{Decimal(text):f}" if _NUMBER.fullmatch(text) else text
    found = decimal_of(plain)
    return None if found is None else sort_text_of(found)


_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_LITERALS: dict[Kind, tuple[Callable[[str], str | None], str]] = {
    Kind.DATETIME: (instant_of, "'2026-03-29T00:30:00Z'"),
    Kind.DATE: (_date_literal, "'2026-03-29'"),
    Kind.DECIMAL: (_decimal_literal, "12.50 or '12.50'"),
}


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


class _Checker:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._exists_count = 0

    def condition(self, node: Syntax) -> Expr:
        """Return an expression that may be used as a condition."""
        expr = self._expr(node)
        if kind_of(expr) is Kind.LIST:
            raise PolicyInvalid("a list is not a condition, write 'x' in auth.roles", node.at)
        if kind_of(expr) is Kind.NULL:
            raise PolicyInvalid("null is not a condition, write false", node.at)
        if kind_of(expr) in (Kind.DECIMAL, Kind.JSON):
            raise PolicyInvalid(
                f"a {kind_of(expr).value} is not a condition, compare it, for example != null",
                node.at,
            )
        return expr

    def _expr(self, node: Syntax) -> Expr:
        make: Callable[[Syntax], Expr] | None = {
            "word": self._word, "call": self._call, "in": self._in,
            "==": self._equality, "!=": self._equality,
        }.get(node.op)
        if make is not None:
            return make(node)
        if node.op == "string":
            return e.Literal(node.value, Kind.STRING)
        if node.op == "number":
            return e.Literal(node.value, Kind.NUMBER)
        if node.op == "list":
            raise PolicyInvalid("a list can only stand to the right of 'in'", node.at)
        if node.op == "not":
            return e.Not(self.condition(node.args[0]))
        if node.op == "&&":
            return e.And(tuple(self.condition(arg) for arg in node.args))
        if node.op == "||":
            return e.Or(tuple(self.condition(arg) for arg in node.args))
        if node.op in ("starts_with", "ends_with"):
            return self._affix(node.op, node.args)
        if node.op in ("<", "<=", ">", ">="):
            return self._order(node)
        return self._arithmetic(node)

    def _word(self, node: Syntax) -> Expr:
        word = str(node.value)
        if word in ("true", "false"):
            return e.Literal(word == "true", Kind.BOOL)
        if word == "null":
            return e.Literal(None, Kind.NULL)
        root, *path = word.split(".")
        if root == "auth":
            names: Mapping[str, object] = _AUTH
            owner = "auth"
        else:
            found = next((r for r in self._scope.roots if r == root), None)
            if found is None:
                known = _list_names(["auth", *self._scope.roots])
                raise PolicyInvalid(
                    f'unknown name "{word}" in a rule of {self._scope.subject} (known: {known})',
                    node.at,
                )
            names = self._scope.roots[found]
            owner = f"{root} of {self._scope.subject}"
        if len(path) != 1:
            problem = "names no attribute" if not path else "goes deeper than one attribute"
            raise PolicyInvalid(
                f'"{word}" {problem} (known in {owner}: {_list_names(names)})', node.at + len(root)
            )
        if path[0] not in names:
            raise PolicyInvalid(
                f'unknown attribute "{path[0]}" of {owner} (known: {_list_names(names)})',
                node.at + len(root) + 1,
            )
        if root == "auth":
            return _AUTH[path[0]]
        assert found is not None
        return e.Column(found, path[0], self._scope.roots[found][path[0]])

    def _call(self, node: Syntax) -> Expr:
        name = str(node.value)
        if name in ("starts_with", "ends_with"):
            if len(node.args) != 2:
                raise PolicyInvalid(f"{name} takes two arguments: a text and its affix", node.at)
            return self._affix(name, node.args)
        if name == "exists":
            return self._exists(node, None)
        if name not in ("auth.hasRole", "auth.hasAnyRole"):
            raise PolicyInvalid(f'unknown function "{name}" (known: {_FUNCTIONS})', node.at)
        if not node.args or (name == "auth.hasRole" and len(node.args) != 1):
            count = "one role" if name == "auth.hasRole" else "one or more roles"
            raise PolicyInvalid(f"{name} takes {count}", node.at)
        for arg in node.args:
            if arg.op != "string":
                raise PolicyInvalid(f"{name} takes roles written as strings", arg.at)
        tests = tuple(e.HasRole(self._expr(arg)) for arg in node.args)
        return tests[0] if len(tests) == 1 else e.Or(tests)

    def _equality(self, node: Syntax) -> Expr:
        left, right = self._expr(node.args[0]), self._expr(node.args[1])
        test = self._equal(node.args[0], left, node.args[1], right, node.at)
        return test if node.op == "==" else e.Not(test)

    def _equal(self, at_left: Syntax, left: Expr, at_right: Syntax, right: Expr, at: int) -> Expr:
        for expr, other, place in ((left, right, at_right), (right, left, at_left)):
            if kind_of(expr) is Kind.NULL:
                self._no_list(other, place)
                if kind_of(other) is Kind.BOOL and not isinstance(other, _VALUES):
                    raise PolicyInvalid("a condition is true or false, never null", at)
                return e.IsNull(other)
        self._no_list(left, at_left)
        self._no_list(right, at_right)
        left = _aligned(left, kind_of(right), at_left)
        right = _aligned(right, kind_of(left), at_right)
        self._same_kind(left, right, at)
        return e.Equal(left, right)

    def _order(self, node: Syntax) -> Expr:
        left, right = self._expr(node.args[0]), self._expr(node.args[1])
        for expr, place in ((left, node.args[0]), (right, node.args[1])):
            if kind_of(expr) not in _ORDERED:
                raise PolicyInvalid(
                    f"{node.op} orders numbers and strings, this is a {kind_of(expr).value}",
                    place.at,
                )
        left = _aligned(left, kind_of(right), node.args[0])
        right = _aligned(right, kind_of(left), node.args[1])
        self._same_kind(left, right, node.at)
        return e.Ordered(node.op, left, right)

    def _in(self, node: Syntax) -> Expr:
        item, place = self._expr(node.args[0]), node.args[1]
        self._no_list(item, node.args[0])
        if place.op != "list":
            if self._expr(place) != _AUTH["roles"]:
                raise PolicyInvalid("the right side of 'in' is a list or auth.roles", place.at)
            if kind_of(item) is not Kind.STRING:
                raise PolicyInvalid(
                    f"roles are strings, this is a {kind_of(item).value}", node.args[0].at
                )
            return e.HasRole(item)
        nulls: list[Expr] = []
        options: list[Expr] = []
        for arg in place.args:
            test = self._equal(node.args[0], item, arg, self._expr(arg), arg.at)
            if isinstance(test, e.Equal):
                item = test.left  # a literal takes the notation of the options
                options.append(test.right)
            elif test not in nulls:
                nulls.append(test)
        if not nulls:
            return e.OneOf(item, tuple(options))
        return e.Or((e.OneOf(item, tuple(options)), *nulls)) if options else e.Or(tuple(nulls))

    def _affix(self, name: str, args: tuple[Syntax, ...]) -> Expr:
        text, affix = self._expr(args[0]), self._expr(args[1])
        for expr, place in ((text, args[0]), (affix, args[1])):
            if kind_of(expr) not in _TEXTS:
                raise PolicyInvalid(
                    f"{name} takes strings, this is a {kind_of(expr).value}", place.at
                )
        return e.Affix(name == "ends_with", text, affix)

    def _arithmetic(self, node: Syntax) -> Expr:
        operands = [self._expr(arg) for arg in node.args]
        sign = "-" if node.op == "negative" else node.op
        for expr, place in zip(operands, node.args, strict=True):
            if kind_of(expr) is not Kind.NUMBER:
                raise PolicyInvalid(
                    f"{sign} works on numbers, this is a {kind_of(expr).value}", place.at
                )
        if node.op == "negative":
            operand = operands[0]
            if isinstance(operand, e.Literal) and isinstance(operand.value, (int, float)):
                return e.Literal(-operand.value, Kind.NUMBER)
            return e.Arithmetic("-", e.Literal(0, Kind.NUMBER), operand)
        return e.Arithmetic(node.op, operands[0], operands[1])

    # --- exists --------------------------------------------------------------------------

    def _exists(self, node: Syntax, around: Entity | None) -> e.Exists:
        """Return the expression of ``exists(...)``.

        Args:
            around: the entity of the `exists` that it stands in.
        """
        self._exists_count += 1
        if self._exists_count > limits.POLICY_EXISTS:
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
                nested.append(self._exists(arg, entity))
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
            known = _list_names(self._scope.entities)
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
        name, kinds = str(left.value), _kinds_of_row(entity)
        if left.op != "word" or name not in kinds:
            shown = f'"{name}"' if left.op == "word" else "this"
            raise PolicyInvalid(
                f"the left side of a comparison is a field of {entity.name}, and {shown} is none"
                f" (known: {_list_names(kinds)})", left.at,
            )
        if node.op != "in":
            option = _aligned(self._option(right, around), kinds[name], right)
            self._fits(name, kinds[name], option, node.op, right.at)
            return e.Comparison(name, node.op, (option,), kinds[name].notation)
        if right.op != "list":
            if right.op != "word" or right.value != "auth.roles":
                raise PolicyInvalid("the right side of 'in' is a list or auth.roles", right.at)
            if kinds[name] is not Kind.STRING:
                raise PolicyInvalid(f"roles are strings, {name} is a {kinds[name].value}", left.at)
            return e.Comparison(name, "in", (_AUTH["roles"],))
        options = [
            _aligned(self._option(arg, around), kinds[name], arg) for arg in right.args
        ]
        for arg, option in zip(right.args, options, strict=True):
            self._fits(name, kinds[name], option, "in", arg.at)
        return e.Comparison(name, "in", tuple(options), kinds[name].notation)

    def _option(self, node: Syntax, around: Entity | None) -> Expr:
        """Return the right side of a comparison in an ``exists(...)``."""
        if around is not None and node.op == "word":
            root, _, name = str(node.value).partition(".")
            if root == around.name and name:
                kinds = _kinds_of_row(around)
                if name not in kinds:
                    raise PolicyInvalid(
                        f'unknown field "{name}" of {root} (known: {_list_names(kinds)})',
                        node.at + len(root) + 1,
                    )
                return e.Related(name, kinds[name])
        found = self._expr(node)
        if not isinstance(found, _VALUES):
            raise PolicyInvalid(
                "the right side of a comparison in exists is a field of a row, an attribute of"
                " auth or a constant", node.at,
            )
        self._no_list(found, node)
        return found

    def _fits(self, name: str, kind: Kind, option: Expr, op: str, at: int) -> None:
        other = kind_of(option)
        if other is Kind.NULL:
            if op not in ("==", "!=", "in"):
                raise PolicyInvalid("null has no order, write == null or != null", at)
        elif kind is Kind.JSON or (other is not kind and not _are_texts(kind, other)):
            raise PolicyInvalid(
                f"{name} is a {kind.value}, and a {other.value} is never equal to it and has no"
                " order with it", at,
            )
        elif op not in ("==", "!=", "in") and kind not in _ORDERED:
            raise PolicyInvalid(f"{op} orders numbers and strings, {name} is a {kind.value}", at)

    @staticmethod
    def _no_list(expr: Expr, place: Syntax) -> None:
        if kind_of(expr) is Kind.LIST:
            raise PolicyInvalid("auth.roles is a list, write 'x' in auth.roles", place.at)

    @staticmethod
    def _same_kind(left: Expr, right: Expr, at: int) -> None:
        a, b = kind_of(left), kind_of(right)
        if a is Kind.JSON or (a is not b and not _are_texts(a, b)):
            raise PolicyInvalid(
                f"a {a.value} and a {b.value} are never equal and have no order", at
            )


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
