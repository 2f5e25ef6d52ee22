"""The table of actions: the flow of each action of `pylon.api.identity.routes`.

A new flow is one line here and one there; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon.bus.identity import IdentityAnswer
from workers.identity.flows import guests, providers
from workers.identity.identity import Call, Identity

Flow = Callable[[Identity, Call], IdentityAnswer]

ACTIONS: Final[dict[str, Flow]] = {
    "providers": providers.list_providers,
    "upgrade": guests.upgrade,
}
