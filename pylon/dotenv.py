"""`.env` files: parsed by python-dotenv, except lines that other programs read in another way.

`parse_dotenv` expands no variables. python-dotenv, node's dotenv and docker compose read some lines
differently. If such a line assigns one of Pylon's settings (`PYLON_*`), `parse_dotenv` refuses it:
an unclosed quote, text after a closing quote, `${…}` and `\\$`, `#` right behind the `=`, other
characters before the name. It also refuses a line that names a setting without an assignment
(`PYLON_PORT: 80`), and a line that stands within the quotes of another variable.

Invariant: lines for other programs never cause a refusal. systemd and `docker --env-file` have
rules of their own: no quotes (docker), and no comments after values (both). Called by
`pylon.cli.settings`.
"""

from __future__ import annotations

import re
from io import StringIO
from typing import Final

from dotenv.parser import Binding, Original, parse_stream

_OURS: Final = "PYLON_"
_ASSIGNMENT: Final = re.compile(r"[ \t\r\n]*(?:export[ \t]+)?(PYLON_[^\s=]*)[ \t]*=[ \t]*")
_QUOTED: Final = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_NEWLINE: Final = re.compile(r"\r\n|\n|\r")
# A line that names one of our settings with more text, but is neither an assignment nor a comment.
# A line with the name only is allowed: docker takes the value from the environment then.
_OUR_LINE: Final = re.compile(
    r"^[^\w#\n]*(?:(?i:export|set)[^\w#\n]+)?(PYLON_\w+)\b(?=[^\S\n]*\S)", re.M
)
_NO_ASSIGNMENT: Final = "expected NAME=value"


class DotenvInvalid(ValueError):
    """A line that sets a setting cannot be read; the text names the line and the remedy."""


def parse_dotenv(text: str) -> dict[str, str]:
    """Return the variables of a `.env` file; of a name that occurs twice, the last value.

    Raises:
        DotenvInvalid: the value of a `PYLON_*` variable can be read in more than one way.
    """
    out: dict[str, str] = {}
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            _refuse_unreadable(binding.original)
        elif binding.key is not None and binding.value is None:
            _refuse_our_line(binding.original, 0, _NO_ASSIGNMENT)
        elif binding.key is not None and binding.value is not None:
            _refuse_enclosed_lines(binding.original, binding.key)
            _refuse_ambiguous(binding)
            out[binding.key] = binding.value
    return out


def _refuse_unreadable(original: Original) -> None:
    """
    Raises:
        DotenvInvalid: the line that the parser cannot read names one of our settings.
    """
    found = _ASSIGNMENT.match(original.string)
    if found is None:
        _refuse_enclosed_lines(original, original.string.partition("=")[0].strip())
        _refuse_our_line(original, 0, _NO_ASSIGNMENT)
        return
    quote = original.string[found.end() :][:1]
    if _QUOTED.match(original.string, found.end()):
        problem = f"text after the value's closing {quote} (a comment needs a #)"
    else:
        problem = f"the value's opening {quote} has no closing one"
    raise _invalid(original, found.start(1), found[1], problem)


def _refuse_enclosed_lines(original: Original, name: str) -> None:
    """
    Raises:
        DotenvInvalid: a line that names one of our settings stands within the quotes of `name`.
    """
    line_end = original.string.find("\n", original.string.find("="))
    if line_end >= 0:
        _refuse_our_line(
            original, line_end + 1,
            f"it is within the quotes of {name}; is a closing quote missing?",
        )


def _refuse_ambiguous(binding: Binding) -> None:
    """
    Raises:
        DotenvInvalid: other programs would read another value from this assignment.
    """
    original = binding.original
    name = binding.key or ""
    if not name.startswith(_OURS):
        _refuse_our_line(original, 0, "there are other characters before the name")
        return
    found = _ASSIGNMENT.match(original.string)
    if found is None:
        _refuse_our_line(original, 0, _NO_ASSIGNMENT)
        return
    value = original.string[found.end() :]
    problem = ""
    if value.startswith("#") and binding.value:
        problem = "the value begins with #: put it in quotes"
    elif not value.startswith("'") and re.search(r"\$\{|\\\$", binding.value or ""):
        problem = (
            "${...} is not replaced, and \\$ has no common meaning: write the value out, or put "
            "it in single quotes"
        )
    if problem:
        raise _invalid(original, found.start(1), name, problem)


def _refuse_our_line(original: Original, begin: int, problem: str) -> None:
    """
    Raises:
        DotenvInvalid: behind the offset `begin`, a line names one of our settings.
    """
    found = _OUR_LINE.search(original.string, begin)
    if found is not None:
        raise _invalid(original, found.start(1), found[1], problem)


def _invalid(original: Original, offset: int, name: str, problem: str) -> DotenvInvalid:
    line = original.line + len(_NEWLINE.findall(original.string, 0, offset))
    return DotenvInvalid(f"line {line}: {name}: {problem}")
