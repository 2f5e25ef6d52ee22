"""Pylon: one command gives an app a live backend.

This package has the code that every process may use. `workers` and `supervisor` import it; it
imports neither of them.

An app's own Python finds its names here: ``from pylon import Entity, SimState, policy``. Their
modules are imported on first use, because most processes never need them.

Some names of apps are also names of packages here (`pylon.policy`, `pylon.query`, `pylon.app`). As
an attribute of `pylon` such a name is the app's; Pylon itself imports the packages by their full
names only. So this module has a class that keeps the import system from setting them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pylon.dsl.declarations import action as action
    from pylon.dsl.declarations import app as app
    from pylon.dsl.declarations import index as index
    from pylon.dsl.declarations import policy as policy
    from pylon.dsl.declarations import query as query
    from pylon.dsl.declarations import rate_limit as rate_limit
    from pylon.dsl.declarations import relation as relation
    from pylon.dsl.declarations import room_policy as room_policy
    from pylon.dsl.declarations import route as route
    from pylon.dsl.declarations import search as search
    from pylon.dsl.entities import Entity
    from pylon.dsl.fields import caller, caller_tenant, field, new_uuid, now, own_id
    from pylon.dsl.types import File, Id, Json, RichText
    from pylon.errors import InputRejected, SubscribeRefused
    from pylon.realtime.kinds import ShardConfig, matchmaking, shard
    from pylon.realtime.state import ShardContext, SimState

__version__ = "0.1.0"

__all__ = [
    "Entity", "File", "Id", "InputRejected", "Json", "RichText", "ShardConfig", "ShardContext",
    "SimState", "SubscribeRefused", "__version__", "action", "app", "caller", "caller_tenant",
    "field", "index", "matchmaking", "new_uuid", "now", "own_id", "policy", "query", "rate_limit",
    "relation", "room_policy", "route", "search", "shard",
]

_HOME: Final = {
    "InputRejected": "pylon.errors",
    "ShardConfig": "pylon.realtime.kinds",
    "ShardContext": "pylon.realtime.state",
    "SimState": "pylon.realtime.state",
    "SubscribeRefused": "pylon.errors",
    "matchmaking": "pylon.realtime.kinds",
    "shard": "pylon.realtime.kinds",
    "Entity": "pylon.dsl.entities",
    **dict.fromkeys(("File", "Id", "Json", "RichText"), "pylon.dsl.types"),
    **dict.fromkeys(
        ("caller", "caller_tenant", "field", "new_uuid", "now", "own_id"), "pylon.dsl.fields"
    ),
    **dict.fromkeys(
        (
            "action", "app", "index", "policy", "query", "rate_limit", "relation", "room_policy",
            "route", "search",
        ),
        "pylon.dsl.declarations",
    ),
}


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return  # the import system, which has imported the package of this name
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pylon' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
