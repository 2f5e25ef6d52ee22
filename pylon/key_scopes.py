"""Scopes of API keys: what a key may do, checked on every path before the policies.

A key has a list of *scopes* (spec/identity.md §1.8):

    *                                         all that its owner may do
    entity:<Name or *>:<action>               rows; the action is read, write, delete or *
    fn:<name or *>                            functions, and actions of the manifest
    files:<read or write>
    rooms                                     rooms and presence
    sync                                      pull, push, sockets and streams of changes
    shards                                    shards and matches

`write` is an insert or an update. `sync` alone opens the paths of sync; which entities come and go
there is the matter of the `entity` scopes. A key without a list may do what `*` says.

A *read-only* caller is the other restriction: it has the scopes of its key, or all, without those
that change something.

Invariants: a scope never gives a right that the owner lacks, since policies judge afterwards. A
word of a stored list that this version does not know gives nothing. Callers without a key that may
write pass each check at the cost of two comparisons. Bound: `limits.KEY_SCOPES_CHARS` of a list,
and `_REMEMBERED` answers.

Called for routes by `pylon.api.http.route_access`, for entities by `pylon.api.data`, for sockets
and their messages by `workers.hub` and `workers.ws`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, Literal

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS, InvalidData, InvalidScope, LimitExceeded, ScopeDenied

EntityAction = Literal["read", "write", "delete"]

EVERYTHING: Final = "*"
ROOMS: Final = "rooms"
SYNC: Final = "sync"
SHARDS: Final = "shards"

_SEPARATORS: Final = re.compile(r"[\s,]+")
_ENTITY: Final = re.compile(r"entity:([A-Za-z][A-Za-z0-9_]*|\*):(read|write|delete|\*)", re.ASCII)
_OTHER: Final = re.compile(
    r"\*|fn:(?:[A-Za-z0-9_][A-Za-z0-9_.:/\-]*|\*)|files:(?:read|write)|rooms|sync|shards", re.ASCII
)
_ALL: Final = (
    "entity:<Name|*>:<read|write|delete|*>, fn:<name|*>, files:<read|write>, rooms, sync, shards, *"
)
_REMEMBERED: Final = 4_096


def parse_scopes(value: object, entities: Collection[str]) -> str | None:
    """Return the scopes of a new key as they are stored: each once, separated by spaces.

    Args:
        value: a text with spaces or commas, a list of texts, or None for a key without a list.
        entities: the names of the manifest's entities.

    Raises:
        InvalidData: it is none of these.
        InvalidScope: a scope is unknown, or there is none.
        LimitExceeded: the list is too long.
    """
    if value is None:
        return None
    if isinstance(value, str):
        words = [word for word in _SEPARATORS.split(value) if word]
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = [word.strip() for word in value]
    else:
        raise InvalidData("scopes must be a text, or a list of texts")
    if not words:
        raise InvalidScope(
            "scopes is empty, so the key could do nothing", hint=f"Name some of {_ALL}"
        )
    for word in words:
        _check_word(word, entities)
    text = " ".join(dict.fromkeys(words))
    if len(text) > limits.KEY_SCOPES_CHARS:
        raise LimitExceeded(
            f"scopes has {len(text)} characters (limit {limits.KEY_SCOPES_CHARS})",
            hint="entity:*:read stands for all entities",
        )
    return text


def entity_scope(entity: str, action: EntityAction) -> str:
    """Return the scope that an action on the rows of an entity needs."""
    return f"entity:{entity}:{action}"


def is_limited(auth: AuthContext) -> bool:
    """Whether a caller may do less than its user: it has a key with scopes, or may only read."""
    return auth.api_key_scopes is not None or auth.readonly


def has_scope(auth: AuthContext, scope: str) -> bool:
    """Whether the scopes of the caller include one, which may be changing or not."""
    if auth.api_key_scopes is None:
        return True
    if len(scope) > limits.KEY_SCOPE_CHARS:
        scope = ""  # no list has it but one with `*`
    return _includes(auth.api_key_scopes, scope)


def require_scope(auth: AuthContext, scope: str, *, changes: bool) -> None:
    """Check that a caller has a scope, and may change something where that is meant.

    Raises:
        ScopeDenied: the caller lacks the scope, or may only read.
    """
    if auth.api_key_scopes is not None and not has_scope(auth, scope):
        raise ScopeDenied(
            f"This API key lacks the scope {scope[:SHOWN_CHARS]}",
            hint=f"It has: {auth.api_key_scopes[:SHOWN_CHARS]}. Make a key with this scope too",
            scope=scope[:SHOWN_CHARS],
        )
    if changes and auth.readonly:
        raise readonly_error(scope)


def require_entity(auth: AuthContext, entity: str, action: EntityAction) -> None:
    """Check that a caller has the scope of an action on the rows of an entity.

    Raises:
        ScopeDenied: as `require_scope`.
    """
    if auth.api_key_scopes is not None or auth.readonly:
        require_scope(auth, entity_scope(entity, action), changes=action != "read")


def readable_entities(auth: AuthContext, entities: Iterable[str]) -> frozenset[str] | None:
    """Return the entities that the caller's scopes let it read; None if it has no list, or if the
    list has all entities.

    Raises:
        ScopeDenied: there are none.
    """
    if auth.api_key_scopes is None or has_scope(auth, entity_scope("*", "read")):
        return None
    found = frozenset(name for name in entities if has_scope(auth, entity_scope(name, "read")))
    if not found:
        require_scope(auth, entity_scope("*", "read"), changes=False)
    return found


def readonly_error(scope: str) -> ScopeDenied:
    """Return the error for a caller that may only read."""
    return ScopeDenied(
        "This caller may only read", hint="Use credentials that may write",
        scope=scope[:SHOWN_CHARS],
    )


@lru_cache(maxsize=_REMEMBERED)
def _includes(scopes: str, scope: str) -> bool:
    words = scopes.split()
    if EVERYTHING in words or scope in words:
        return True
    kind, _, rest = scope.partition(":")
    if kind == "entity":
        name, _, action = rest.rpartition(":")
        wider = {f"entity:{name}:*", f"entity:*:{action}", "entity:*:*"}
        return not wider.isdisjoint(words)
    return kind == "fn" and "fn:*" in words


def _check_word(word: str, entities: Collection[str]) -> None:
    match = _ENTITY.fullmatch(word)
    if match is None:
        if len(word) <= limits.KEY_SCOPES_CHARS and _OTHER.fullmatch(word) is not None:
            return
        raise InvalidScope(
            f'Unknown scope "{word[:SHOWN_CHARS]}"', hint=f"Scopes are {_ALL}",
            scope=word[:SHOWN_CHARS],
        )
    name = match[1]
    if name != "*" and name not in entities:
        near = difflib.get_close_matches(name, entities, n=1)
        raise InvalidScope(
            f'The scope "{word[:SHOWN_CHARS]}" names no entity of the manifest'
            + (f', did you mean "{near[0]}"?' if near else ""),
            hint=f"Entities: {', '.join(sorted(entities)) or 'none'}", scope=word[:SHOWN_CHARS],
        )
