"""Pylon: one command gives an app a live backend.

This package has the code that every process may use. `workers` and `supervisor` import it; it
imports neither of them.

An app's own Python finds its classes here by short names: ``from pylon import SimState, shard``.
Their modules are imported on first use, because most processes never need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pylon.errors import InputRejected, SubscribeRefused
    from pylon.realtime.kinds import ShardConfig, matchmaking, shard
    from pylon.realtime.state import ShardContext, SimState

__version__ = "0.1.0"

__all__ = [
    "InputRejected", "ShardConfig", "ShardContext", "SimState", "SubscribeRefused", "__version__",
    "matchmaking", "shard",
]

_HOME: Final = {
    "InputRejected": "pylon.errors",
    "ShardConfig": "pylon.realtime.kinds",
    "ShardContext": "pylon.realtime.state",
    "SimState": "pylon.realtime.state",
    "SubscribeRefused": "pylon.errors",
    "matchmaking": "pylon.realtime.kinds",
    "shard": "pylon.realtime.kinds",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pylon' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
