"""Nearest names: what somebody may have meant by a name that does not exist.

Called for the texts of errors: by the declarations of `pylon.dsl`, and by the checks of manifests
and policies.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that resembles `name` most; the case of letters and underscores count
    less than letters."""
    words = sorted(known)
    found = difflib.get_close_matches(name, words, n=1, cutoff=0.75)
    if found:
        return found[0]
    plain = {_plain(word): word for word in words}
    found = difflib.get_close_matches(_plain(name), plain, n=1)
    return plain[found[0]] if found else None


def name_hint(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the nearest one, else all of them."""
    words = sorted(known)
    near = nearest_name(name, words)
    return f"did you mean {near}?" if near else f"known: {', '.join(words) or 'none'}"


def near_suffix(name: str | None, known: Iterable[str]) -> str:
    """Return what to say behind a list of known names: the nearest one, or nothing."""
    near = None if name is None else nearest_name(name, known)
    return f"; did you mean {near}?" if near else ""


def refuse_unknown(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that a declaration does not have.

    Raises:
        TypeError: names the argument and the nearest one.
    """
    words = list(known)
    for name in given:
        if name not in words:
            raise TypeError(f"{call}() has no argument {name!r}: {name_hint(name, words)}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
