"""The sign-in providers of the app; this server has none yet."""

from __future__ import annotations

from pylon.bus.identity import IdentityAnswer, json_answer
from workers.identity.identity import Call, Identity


def list_providers(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the providers that a client may offer."""
    return json_answer([])
