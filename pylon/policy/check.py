"""Checker: resolves names and kinds, and turns syntax into a typed expression.

The names are those of a scope (`scope`). `kinds` decides which values compare, and `exists_check`
checks what a rule asks of other rows. Each error has the offset of its character.

Invariant: the checker finds every fault of a rule at start, so a rule that passes cannot fail while
it judges a row. Called by `rules`, `room_rules`, `pylon.manifest_loader` and `pylonctl policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pylon.policy import expression as e
from pylon.policy.exists_check import ExistsChecker
from pylon.policy.expression import Expr, Kind, kind_of
from pylon.policy.grammar import PolicyInvalid, Syntax, parse
from pylon.policy.kinds import ORDERED, TEXTS, VALUES, align_literal, refuse_list, refuse_other_kind
from pylon.policy.scope import AUTH_ATTRIBUTES, Scope, list_names

_FUNCTIONS = "auth.hasRole, auth.hasAnyRole, starts_with, ends_with, exists"


def check(text: str, scope: Scope) -> Expr:
    """Return the typed expression of a rule.

    Raises:
        PolicyInvalid: bad syntax, an unknown name, or kinds that do not fit.
    """
    return _Checker(scope).condition(parse(text))


class _Checker:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._exists = ExistsChecker(scope, self._expr)

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
            names: Mapping[str, object] = AUTH_ATTRIBUTES
            owner = "auth"
        else:
            found = next((r for r in self._scope.roots if r == root), None)
            if found is None:
                known = list_names(["auth", *self._scope.roots], root)
                raise PolicyInvalid(
                    f'unknown name "{word}" in a rule of {self._scope.subject} (known: {known})',
                    node.at,
                )
            names = self._scope.roots[found]
            owner = f"{root} of {self._scope.subject}"
        if len(path) != 1:
            problem = "names no attribute" if not path else "goes deeper than one attribute"
            raise PolicyInvalid(
                f'"{word}" {problem} (known in {owner}: {list_names(names)})', node.at + len(root)
            )
        if path[0] not in names:
            raise PolicyInvalid(
                f'unknown attribute "{path[0]}" of {owner} (known: {list_names(names, path[0])})',
                node.at + len(root) + 1,
            )
        if root == "auth":
            return AUTH_ATTRIBUTES[path[0]]
        assert found is not None
        return e.Column(found, path[0], self._scope.roots[found][path[0]])

    def _call(self, node: Syntax) -> Expr:
        name = str(node.value)
        if name in ("starts_with", "ends_with"):
            if len(node.args) != 2:
                raise PolicyInvalid(f"{name} takes two arguments: a text and its affix", node.at)
            return self._affix(name, node.args)
        if name == "exists":
            return self._exists.check(node)
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
                refuse_list(other, place)
                if kind_of(other) is Kind.BOOL and not isinstance(other, VALUES):
                    raise PolicyInvalid("a condition is true or false, never null", at)
                return e.IsNull(other)
        refuse_list(left, at_left)
        refuse_list(right, at_right)
        left = align_literal(left, kind_of(right), at_left)
        right = align_literal(right, kind_of(left), at_right)
        refuse_other_kind(left, right, at)
        return e.Equal(left, right)

    def _order(self, node: Syntax) -> Expr:
        left, right = self._expr(node.args[0]), self._expr(node.args[1])
        for expr, place in ((left, node.args[0]), (right, node.args[1])):
            if kind_of(expr) not in ORDERED:
                raise PolicyInvalid(
                    f"{node.op} orders numbers and strings, this is a {kind_of(expr).value}",
                    place.at,
                )
        left = align_literal(left, kind_of(right), node.args[0])
        right = align_literal(right, kind_of(left), node.args[1])
        refuse_other_kind(left, right, node.at)
        return e.Ordered(node.op, left, right)

    def _in(self, node: Syntax) -> Expr:
        item, place = self._expr(node.args[0]), node.args[1]
        refuse_list(item, node.args[0])
        if place.op != "list":
            if self._expr(place) != AUTH_ATTRIBUTES["roles"]:
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
            if kind_of(expr) not in TEXTS:
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
