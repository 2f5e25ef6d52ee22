"""Request bodies of sessions (spec/http.md §3.11.1, spec/identity.md §1.1).

Called by the resources of sessions; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingUserId

_USER_ID_CHARS: Final = 200


class MintSessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The user that a session is made for."""

    user_id: Annotated[
        str, Meta(min_length=1, max_length=_USER_ID_CHARS),
        Refusal(
            MissingUserId, InvalidData, expected=f"text of at most {_USER_ID_CHARS} characters"
        ),
    ]


# On the wire a body that is no object is the same as one without a user id.
MINT_SESSION: Final = BodyType(MintSessionBody, '{"user_id": "..."}', is_lenient=True)


class PurgeSessionsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions to end: those of a user, those made before a time, or all."""

    user_id: Annotated[str, Meta(min_length=1, max_length=_USER_ID_CHARS)] | None = None
    before: Annotated[int, Meta(ge=0, description="Unix seconds of the sign-in")] | None = None


PURGE_SESSIONS: Final = BodyType(PurgeSessionsBody, '{"user_id": "..."}')
