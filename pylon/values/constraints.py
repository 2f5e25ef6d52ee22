"""Constraints: what the values of a field must fulfil beyond its type.

`tests_of` returns the tests of one field, which the check of its type runs behind itself. So a
constraint holds on every path that writes a value. Rows from before a constraint stay as they are.

Patterns are those of RE2, whose time is linear in the text. PERF: the library takes 1.1 MB in the
template process, so only an app with a pattern imports it; a match in a short text takes 4 to 6 us.
Invariant: the values that the tests get are of the field's type, in the form that a row has.
Called by `types` and, for diagnostics, by `constraint_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from pylon import limits
from pylon.manifest.model import Constraints, Field, FieldType
from pylon.values.datetimes import instant_key
from pylon.values.decimals import decimal_key

Test = Callable[[Any], bool]

# As browsers check <input type=email>, with a dot in the domain.
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+", re.ASCII,
)
_EMAIL_CHARS: Final = 254
_URL: Final = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[^\s/?#@:\[\]\\]{1,253})(?::[0-9]{1,5})?(?:[/?#][^\s\\]*)?"
)

_FILE_ID: Final = re.compile(r"file_[A-Za-z0-9_.-]{1,200}")  # also those of earlier servers


def tests_of(field: Field) -> tuple[Test, ...]:
    """Return the tests of a field's values.

    Raises:
        ValueError: the pattern is none of RE2.
    """
    constraints = field.constraints
    if constraints is None:
        return ()
    tests: list[Test] = []
    key = key_of_bound(field.type)
    if constraints.minimum is not None:
        low = key(constraints.minimum)
        tests.append(lambda value: bool(key(value) >= low))
    if constraints.maximum is not None:
        high = key(constraints.maximum)
        tests.append(lambda value: bool(key(value) <= high))
    if constraints.min_length is not None:
        shortest = constraints.min_length
        tests.append(lambda value: len(value) >= shortest)
    if constraints.max_length is not None:
        longest = constraints.max_length
        tests.append(lambda value: len(value) <= longest)
    if constraints.format is not None:
        tests.append(_FORMATS[constraints.format])
    if constraints.pattern is not None:
        tests.append(compile_pattern(constraints.pattern))
    return tuple(tests)


def compile_pattern(pattern: str) -> Test:
    """Return the test whether a text has a match of the pattern.

    Raises:
        ValueError: RE2 refuses the pattern; the text says why.
    """
    import re2  # see the header

    options = re2.Options()
    options.log_errors = False
    options.max_mem = limits.PATTERN_MEMORY_BYTES
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(text) from None
    return lambda value: search(value) is not None


def key_of_bound(kind: FieldType) -> Callable[[Any], Any]:
    """Return the function that makes values and bounds of a type comparable."""
    return _KEYS.get(kind, _same)


def describe(constraints: Constraints | None) -> str:
    """Return the words that say the constraints, behind the description of a type."""
    if constraints is None:
        return ""
    words = []
    if constraints.minimum is not None:
        words.append(f"at least {constraints.minimum}")
    if constraints.maximum is not None:
        words.append(f"at most {constraints.maximum}")
    if constraints.min_length is not None:
        words.append(f"at least {constraints.min_length} characters")
    if constraints.max_length is not None:
        words.append(f"at most {constraints.max_length} characters")
    if constraints.format is not None:
        words.append(_FORMAT_WORDS[constraints.format])
    if constraints.pattern is not None:
        words.append(f"a text that matches {constraints.pattern}")
    return "".join(f", {word}" for word in words)


def _is_email(value: str) -> bool:
    return len(value) <= _EMAIL_CHARS and _EMAIL.fullmatch(value) is not None


def _is_url(value: str) -> bool:
    return len(value) <= limits.URL_CHARS and _URL.fullmatch(value) is not None


def _is_file_id(value: str) -> bool:
    return _FILE_ID.fullmatch(value) is not None


def _same(value: Any) -> Any:
    return value


_KEYS: Final[dict[FieldType, Callable[[Any], Any]]] = {
    FieldType.DECIMAL: decimal_key, FieldType.DATETIME: instant_key,
}
_FORMATS: Final[dict[str, Test]] = {"email": _is_email, "url": _is_url, "file": _is_file_id}
_FORMAT_WORDS: Final = {
    "email": "an e-mail address such as name@example.org",
    "url": "an http or https URL such as https://example.org/page",
    "file": "the id of an uploaded file, which begins with file_",
}
