"""The Idempotency-Key header: a request that is sent again gets the response of the first time.

The writer keeps the key in the transaction of the change, scoped to the user, or to the address
of a caller without one, with a digest of the request. It refuses the same key with another
request. A request that fails changes nothing and leaves no key, so it can be tried again.

Called by the resources that write rows.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import falcon

from pylon import limits
from pylon.api.http.callers import address_of
from pylon.api.services import RequestServices
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData
from pylon.storage.ops import OpKey

REPLAYED_HEADER: Final = "idempotency-replayed"
_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{limits.OP_ID_CHARS}}}", re.ASCII)
_DIGEST_BYTES: Final = 16


def identity_of(auth: AuthContext, client_id: object, address: str) -> str:
    """Return the scope of op_ids and keys: those of two identities never meet."""
    if auth.user_id is not None:
        return auth.user_id
    if isinstance(client_id, str) and client_id:
        return f"anon:{client_id[: limits.OP_ID_CHARS]}"
    return f"anon-at:{address}"


def key_of(
    req: falcon.Request, services: RequestServices, auth: AuthContext, raw: bytes
) -> OpKey | None:
    """Return the key of a request, or None if it has none.

    Args:
        raw: the request's body.

    Raises:
        InvalidData: the header is not a key.
    """
    given = req.env.get("HTTP_IDEMPOTENCY_KEY")
    if given is None:
        return None
    if _KEY.fullmatch(given) is None:
        raise InvalidData(
            f"Idempotency-Key must be 1 to {limits.OP_ID_CHARS} ASCII characters without spaces"
        )
    request = f"{req.method} {req.path}?{req.query_string}\n".encode() + raw
    digest = hashlib.blake2b(request, digest_size=_DIGEST_BYTES).hexdigest()
    return OpKey(identity_of(auth, None, address_of(req, services)), f"ik:{given}", digest)


def operation_key(key: OpKey | None, number: int) -> OpKey | None:
    """Return the key of one operation of a request that is not atomic."""
    return None if key is None else OpKey(key.identity, f"{key.op_id}:{number}", key.digest)


def mark_replayed(resp: falcon.Response) -> None:
    """Set the header that says that nothing was done this time."""
    resp.set_header(REPLAYED_HEADER, "true")
