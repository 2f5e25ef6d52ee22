"""Read the text of a `.env` file: `NAME=value` lines, as the well-known readers do.

The rules are those that python-dotenv, node's dotenv and docker compose share. A byte order mark
and `export ` are passed over. A value without quotes ends before white space and `#`. Behind a
closing quote may stand a comment. A quoted value may span lines; in double quotes \\n, \\r, \\t,
\\", \\\\ and \\$ are escapes, in single quotes nothing is. Nothing is expanded.

Where those readers differ, a line that sets a setting of ours is refused rather than guessed at.
So is a line that names one but is no assignment (`PYLON_PORT: 80`, a control character before the
name), and one that an unclosed quote above it has swallowed. Lines for other programs are passed
over. systemd and `docker --env-file` have other rules: no quotes (docker) and no comments behind
values (both). Called by `pylon.cli.settings`.
"""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"[ \t]*(?:export[ \t]+)?([^\s=#'\"][^\s=]*)[ \t]*=[ \t]*")
_PLAIN: Final = re.compile(r"[^\r\n]*")
_COMMENT: Final = re.compile(r"(?:^|[ \t])#.*")
_SINGLE: Final = re.compile(r"'([^']*)'")
_DOUBLE: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\([nrt\"\\$])")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}
_REFERENCE: Final = re.compile(r"(?<!\\)\$\{")
_BEHIND: Final = re.compile(r"[ \t]*(#[^\r\n]*)?(?=\r?\n|\Z)")
_LINE_END: Final = re.compile(r"\r?\n|\Z")
_OURS: Final = "PYLON_"
# A line that names a setting of ours and more, but is neither an assignment nor a comment. A name
# alone is docker's way to say that the environment has it.
_OUR_LINE: Final = re.compile(
    r"^[^\w#\n]*(?:(?i:export|set)[^\w#\n]+)?(PYLON_\w+)\b(?=[^\S\n]*\S)", re.M
)


class DotenvInvalid(ValueError):
    """A line that sets a setting cannot be read; the text names the line and the remedy."""


def parse_dotenv(text: str) -> dict[str, str]:
    """The variables of a `.env` file; of a name that occurs twice, the last value.

    Raises:
        DotenvInvalid: the value of a `PYLON_*` variable can be read in more than one way.
    """
    text = text.removeprefix("\ufeff")
    out: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _NAME.match(text, at)
        if found is None:
            begin, at = at, _next_line(text, at)
            _refuse_ours(text, begin, text[begin:at], "expected NAME=value")
            continue
        name, begin, at = found.group(1), found.end(), found.end()
        if not name.startswith(_OURS):
            line_end = _next_line(text, found.end())
            _refuse_ours(
                text, found.start(1), text[found.start(1) : line_end],
                "there are other characters before the name",
            )
        try:
            out[name], at = _value(text, at)
        except DotenvInvalid as ex:
            if name.startswith(_OURS):
                line = text.count("\n", 0, found.start(1)) + 1
                raise DotenvInvalid(f"line {line}: {name}: {ex}") from None
            out[name] = text[at : _LINE_END.search(text, at).start()].strip()  # type: ignore[union-attr]
        if "\n" in text[begin:at]:
            behind = text.index("\n", begin) + 1
            _refuse_ours(
                text, behind, text[behind:at],
                f"it is within the quotes of {name}; is a closing quote missing?",
            )
        at = _next_line(text, at)
    return out


def _refuse_ours(text: str, begin: int, part: str, problem: str) -> None:
    """
    Raises:
        DotenvInvalid: a line of `part`, which begins at `begin`, names a setting of ours.
    """
    found = _OUR_LINE.search(part)
    if found is not None:
        line = text.count("\n", 0, begin + found.start(1)) + 1
        raise DotenvInvalid(f"line {line}: {found.group(1)}: {problem}")


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that starts at `at`, and the offset behind it."""
    quote = text[at : at + 1]
    if quote not in ("'", '"'):
        line = _PLAIN.match(text, at)
        plain = _COMMENT.sub("", line.group() if line else "").strip()
        return _without_reference(plain), line.end() if line else at
    found = (_SINGLE if quote == "'" else _DOUBLE).match(text, at)
    if found is None:
        raise DotenvInvalid(f"the value's opening {quote} has no closing one")
    if _BEHIND.match(text, found.end()) is None:
        raise DotenvInvalid(f"text after the value's closing {quote} (a comment needs a #)")
    if quote == "'":
        return found.group(1), found.end()
    inner = _without_reference(found.group(1))
    return _ESCAPE.sub(lambda m: _ESCAPES.get(m[1], m[1]), inner), found.end()


def _without_reference(value: str) -> str:
    if _REFERENCE.search(value):
        raise DotenvInvalid(
            "${...} is not replaced: write the value out, or put it in single quotes"
        )
    return value


def _next_line(text: str, at: int) -> int:
    found = _LINE_END.search(text, at)
    return max(found.end(), at + 1) if found else len(text)
