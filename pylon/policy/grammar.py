"""Grammar: parses the text of a rule into a tree of `Syntax` nodes (spec/http.md §5.2, §9 row 14).

Precedence, weakest first: ``||``, ``&&``, one comparison (comparisons do not chain), ``+ -``,
``* / %``, unary ``! -``. So ``!a == b`` is ``(!a) == b``. `check` resolves names and kinds. Every
node has the offset of the character that an error about it names.

Invariant: any text either parses or raises `PolicyInvalid`. Bounds: `limits.POLICY_CHARS`, and
`limits.POLICY_DEPTH` levels of recursion. Called by `check`.
"""

from __future__ import annotations

import re

import msgspec

from pylon import limits
from pylon.errors import StartRefused

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "starts_with", "ends_with")
_LEVELS = (("+", "-"), ("*", "/", "%"))
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_SUGGESTED = {
    "=": "==", "&": "&&", "|": "||", "===": "==", "!==": "!=",
    "and": "&&", "or": "||", "not": "!", "True": "true", "False": "false", "None": "null",
}
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)
    |(?P<quote>["'])
    |(?P<symbol>===|!==|\|\||&&|==|!=|<=|>=|[<>!+\-*/%()\[\],=&|])
    """,
    re.VERBOSE,
)
_STRING_PART = re.compile(r"""[^\\"']+""")
_INT_MAX = 2**63 - 1


class PolicyInvalid(StartRefused):
    """The parser cannot read a rule of a policy. The diagnostic has the place of the first
    character that does not fit.

    Remedy: correct the expression; the message lists the names that are known there.
    """

    code = "POLICY_EXPRESSION_INVALID"

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class PolicyIndexMissing(PolicyInvalid):
    """A rule asks rows with ``exists(...)`` that no index finds: each verdict would be a scan.

    Remedy: add the index of the message to the entity's indexes in the manifest. Its first fields
    are those that the rule compares by equality, those compared with the caller first.
    """

    code = "POLICY_EXISTS_INDEX_MISSING"


class Syntax(msgspec.Struct, frozen=True):
    """A node.

    `op` is ``word``, ``string``, ``number``, ``list``, ``call`` or an operator (``not`` and
    ``negative`` for the unary ones). `value` is the value of a leaf or the name of a call.
    """

    op: str
    at: int
    args: tuple[Syntax, ...] = ()
    value: str | int | float | None = None
    height: int = 0  # levels below; bounded like the nesting of brackets, for recursive readers


class _Token(msgspec.Struct, frozen=True):
    """A token of a rule, and its offset."""

    type: str  # "word", "string", "number", "symbol" or "end"
    at: int
    value: str | int | float


def parse(text: str) -> Syntax:
    """Parse a whole rule.

    Raises:
        PolicyInvalid: with the offset of the first character that does not fit.
    """
    if len(text) > limits.POLICY_CHARS:
        raise PolicyInvalid(
            f"the expression is longer than {limits.POLICY_CHARS} characters", limits.POLICY_CHARS
        )
    parser = _Parser(_tokens(text))
    tree = parser.disjunction(0)
    parser.expect_end()
    return tree


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PolicyInvalid(f"unexpected character {text[at]!r}", at)
        piece, end = match.group(), match.end()
        if match.lastgroup == "quote":
            string, end = _string(text, at)
            tokens.append(_Token("string", at, string))
        elif match.lastgroup == "number":
            tokens.append(_Token("number", at, _number(piece, at)))
        elif match.lastgroup != "space":
            if piece in _SUGGESTED:
                raise PolicyInvalid(f"{piece!r} is not known here, write {_SUGGESTED[piece]!r}", at)
            tokens.append(_Token(str(match.lastgroup), at, piece))
        if match.lastgroup in ("number", "word") and end < len(text) and (
            text[end] == "." or text[end].isalnum() or text[end] == "_"
        ):
            raise PolicyInvalid(f"unexpected character {text[end]!r} after {piece!r}", end)
        at = end
    tokens.append(_Token("end", len(text), "the end"))
    return tokens


def _number(piece: str, at: int) -> int | float:
    if piece.isdigit():
        # Count the digits first: int() raises an error of its own for very long texts.
        if len(piece) > 400 or int(piece) > _INT_MAX:
            raise PolicyInvalid(f"the number is larger than {_INT_MAX}", at)
        return int(piece)
    value = float(piece)
    if value == float("inf"):
        raise PolicyInvalid("the number is too large", at)
    return value


def _string(text: str, start: int) -> tuple[str, int]:
    """Return the string literal that opens at `start`, and the offset behind its closing quote."""
    quote, at, out = text[start], start + 1, list[str]()
    while at < len(text):
        char = text[at]
        if char == quote:
            return "".join(out), at + 1
        if char == "\\":
            if text[at + 1 : at + 2] not in _ESCAPES or at + 1 == len(text):
                raise PolicyInvalid(
                    "unknown escape in a string (known: " + " ".join(f"\\{e}" for e in "\\\"'nrt0")
                    + ")", at,
                )
            out.append(_ESCAPES[text[at + 1]])
            at += 2
        elif part := _STRING_PART.match(text, at):
            out.append(part.group())
            at = part.end()
        else:  # the other sort of quote
            out.append(char)
            at += 1
    raise PolicyInvalid(f"the string is not closed with {quote}", start)


class _Parser:
    """Recursive descent over the tokens. `depth` counts the open levels around a token."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0

    def disjunction(self, depth: int) -> Syntax:
        return self._series("||", depth)

    def expect_end(self) -> None:
        token = self._tokens[self._next]
        if token.type != "end":
            raise PolicyInvalid(
                f"unexpected {self._token_text(token)}, expected an operator", token.at
            )

    def _series(self, op: str, depth: int) -> Syntax:
        """Parse ``||`` or ``&&``: any number of operands in one flat node."""
        items = [self._operand(op, depth)]
        at = self._tokens[self._next].at
        while self._accept(op):
            items.append(self._operand(op, depth))
        return items[0] if len(items) == 1 else _node(op, at, tuple(items))

    def _operand(self, op: str, depth: int) -> Syntax:
        return self._series("&&", depth) if op == "||" else self._comparison(depth)

    def _comparison(self, depth: int) -> Syntax:
        left = self._arithmetic(0, depth)
        token = self._tokens[self._next]
        if not self._is_comparison(token):
            return left
        self._next += 1
        right = self._arithmetic(0, depth)
        after = self._tokens[self._next]
        if self._is_comparison(after):
            raise PolicyInvalid("comparisons do not chain, use && or parentheses", after.at)
        return _node(str(token.value), token.at, (left, right))

    def _arithmetic(self, level: int, depth: int) -> Syntax:
        if level == len(_LEVELS):
            return self._unary(depth)
        left = self._arithmetic(level + 1, depth)
        while True:
            token = self._tokens[self._next]
            if token.type != "symbol" or token.value not in _LEVELS[level]:
                return left
            self._next += 1
            right = self._arithmetic(level + 1, depth)
            left = _node(str(token.value), token.at, (left, right))

    def _unary(self, depth: int) -> Syntax:
        token = self._tokens[self._next]
        if token.type == "symbol" and token.value in ("!", "-"):
            self._next += 1
            operand = self._unary(self._next_depth(depth, token))
            return _node("not" if token.value == "!" else "negative", token.at, (operand,))
        return self._primary(depth)

    def _primary(self, depth: int) -> Syntax:
        token = self._tokens[self._next]
        self._next += 1
        if token.type in ("string", "number"):
            return Syntax(token.type, token.at, value=token.value)
        if token.type == "word" and token.value != "in" and self._accept("("):
            args = self._items_until(")", self._next_depth(depth, token))
            return _node("call", token.at, args, token.value)
        if token.type == "word" and token.value not in COMPARISONS:
            return Syntax("word", token.at, value=token.value)
        if token.type == "symbol" and token.value == "(":
            inner = self.disjunction(self._next_depth(depth, token))
            self._expect(")")
            return inner
        if token.type == "symbol" and token.value == "[":
            return _node("list", token.at, self._items_until("]", self._next_depth(depth, token)))
        raise PolicyInvalid(f"unexpected {self._token_text(token)}, expected a value", token.at)

    def _items_until(self, closing: str, depth: int) -> tuple[Syntax, ...]:
        """Parse comma-separated expressions up to the closing bracket; there may be none."""
        items: list[Syntax] = []
        if self._accept(closing):
            return ()
        items.append(self.disjunction(depth))
        while self._accept(","):
            items.append(self.disjunction(depth))
        self._expect(closing)
        return tuple(items)

    def _expect(self, closing: str) -> None:
        if not self._accept(closing):
            token = self._tokens[self._next]
            raise PolicyInvalid(
                f"unexpected {self._token_text(token)}, expected {closing!r}", token.at
            )

    def _accept(self, symbol: str) -> bool:
        token = self._tokens[self._next]
        if token.type == "symbol" and token.value == symbol:
            self._next += 1
            return True
        return False

    @staticmethod
    def _is_comparison(token: _Token) -> bool:
        return token.type in ("symbol", "word") and token.value in COMPARISONS

    @staticmethod
    def _token_text(token: _Token) -> str:
        return "end of the expression" if token.type == "end" else repr(token.value)

    @staticmethod
    def _next_depth(depth: int, token: _Token) -> int:
        return _check_depth(depth + 1, token.at)


def _check_depth(depth: int, at: int) -> int:
    if depth > limits.POLICY_DEPTH:
        raise PolicyInvalid(f"nested deeper than {limits.POLICY_DEPTH} levels", at)
    return depth


def _node(
    op: str, at: int, args: tuple[Syntax, ...], value: str | int | float | None = None
) -> Syntax:
    height = _check_depth(1 + max((arg.height for arg in args), default=0), at)
    return Syntax(op, at, args, value, height)
