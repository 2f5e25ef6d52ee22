"""Stored addresses: where the mail of an account goes, and the URLs that it names.

Mail goes to the address of the user's row, never to the one that somebody typed: two texts may be
one mailbox by our rules and two by those of a mail server. Called by the flows.
"""

from __future__ import annotations

import msgspec

from workers.identity.identity import Identity

_NOBODY = "nobody"  # no row has this id


def stored_address(identity: Identity, user_id: str | None) -> str | None:
    """Return the address of a user's row, or None without a row or an address.

    Args:
        user_id: None for an account that does not exist: the store is asked all the same.
    """
    manifest = identity.app.manifest
    entity = manifest.by_name.get(manifest.auth.user_entity)
    if entity is None:
        return None
    row = identity.store.point(lambda reader: reader.get(entity.name, user_id or _NOBODY))
    address = None if row is None else msgspec.json.decode(row).get("email")
    return address if isinstance(address, str) and address else None


def public_url(identity: Identity, path: str) -> str:
    """Return the URL of a path as a browser reaches it: of PYLON_PUBLIC_URL, or of this machine."""
    config = identity.app.config
    base = config.public_url or f"http://localhost:{config.port}"
    return base.rstrip("/") + path
