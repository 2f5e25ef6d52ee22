"""Rate limits of the app: the part `rateLimits` of a manifest (spec/identity.md §4).

A rule counts the writes of an entity, the requests below a path, or the messages of WebSockets:

    {"name": "posts", "match": "entity:Todo:insert", "per": "user", "limit": 30, "window": "1m"}

Invariants: names are unique, and at most `limits.APP_RATES` rules count any one thing, so that a
request costs a bounded number of takes. Called by `checks` and `build`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, Literal, cast

from pylon import limits
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of
from pylon.manifest.model import RateLimit, WriteVerb

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,63}")
_WRITES: Final = re.compile(r"entity:([A-Za-z_][A-Za-z0-9_]*):(insert|update|delete|write)")
_ROUTE: Final = re.compile(r"route:(/[!-~]*)")
_MESSAGES: Final = "ws:message"
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_S: Final = 31 * 86_400
_VERBS: Final = ("insert", "update", "delete")


def check_rate_limits(root: Node, entities: frozenset[str], findings: Findings) -> None:
    """Report each rule that counts nothing, has no readable window, or is one too many.

    Args:
        entities: the names of those that the manifest declares.
    """
    names: set[str] = set()
    counted: dict[str, list[str]] = defaultdict(list)  # names of rules by what they count
    routes: list[tuple[Node, str, str]] = []
    for rule in items_of(root, "rateLimits"):
        name, match, window = (text_of(rule, key) for key in ("name", "match", "window"))
        if name is None or match is None or window is None:
            continue  # `shape` has reported it
        if _NAME.fullmatch(name.value) is None or name.value in names:
            findings.error(
                "RATE_LIMIT_INVALID",
                f'the rate limit "{name.value}" needs a name of its own', name.at,
                "a letter, then up to 63 letters, digits, _ and -; each name once",
            )
        names.add(name.value)
        if not _is_window(window.value):
            findings.error(
                "RATE_LIMIT_INVALID", f'"{window.value}" is no time of a rate limit', window.at,
                "a number and s, m, h or d, up to 31 days, such as 1m",
            )
        if (route := _ROUTE.fullmatch(match.value)) is not None:
            routes.append((match, name.value, route[1]))
        for thing in _things_of(match, entities, findings):
            counted[thing].append(name.value)
            _check_number(counted[thing], thing, match, findings)
    for match, _, path in routes:
        rules = [name for _, name, prefix in routes if is_below(path, prefix)]
        _check_number(rules, f"route:{path}", match, findings)


def _is_window(text: str) -> bool:
    found = _WINDOW.fullmatch(text)
    return found is not None and int(found[1]) * _SECONDS[found[2]] <= _LONGEST_S


def _things_of(match: Node, entities: frozenset[str], findings: Findings) -> Iterable[str]:
    """Return what the rule counts, one text for each kind of write; a route counts none here."""
    text = match.value
    if text == _MESSAGES:
        return (text,)
    if _ROUTE.fullmatch(text) is not None:
        return ()
    writes = _WRITES.fullmatch(text)
    if writes is None:
        findings.error(
            "RATE_LIMIT_INVALID", f'"{text}" is nothing that a rate limit counts', match.at,
            "entity:<Name>:<insert|update|delete|write>, route:</path>, or ws:message",
        )
        return ()
    if writes[1] not in entities:
        findings.error(
            "RATE_LIMIT_INVALID", f'there is no entity "{writes[1]}" whose writes to count',
            match.at, f"known: {', '.join(sorted(entities)) or 'none'}",
        )
    verbs = _VERBS if writes[2] == "write" else (writes[2],)
    return tuple(f"entity:{writes[1]}:{verb}" for verb in verbs)


def _check_number(rules: list[str], thing: str, match: Node, findings: Findings) -> None:
    if len(rules) > limits.APP_RATES:
        findings.error(
            "RATE_LIMIT_INVALID",
            f"{len(rules)} rate limits count {thing}: {', '.join(rules)}", match.at,
            f"at most {limits.APP_RATES}",
        )


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is `prefix` or lies below it, by whole segments."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def build_rate_limit(raw: dict[str, Any]) -> RateLimit:
    """Return one checked rule."""
    found = _WINDOW.fullmatch(raw["window"])
    if found is None:
        raise ValueError(f"unchecked window {raw['window']}")
    window_s = int(found[1]) * _SECONDS[found[2]]
    match = raw["match"]
    kind, _, target = match.partition(":")
    verb: WriteVerb = "write"
    if kind == "entity":
        target, _, word = target.partition(":")
        verb = cast(WriteVerb, word)
    return RateLimit(
        raw["name"], cast(Literal["entity", "route", "ws"], kind), target,
        raw.get("per") or "user", raw["limit"], window_s, raw.get("burst") or raw["limit"], verb,
    )
