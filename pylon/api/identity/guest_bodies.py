"""The body and the answer of `POST /api/auth/upgrade`. `pylon.openapi` derives their schemas."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingUserId

_USER_ID_CHARS: Final = 200


class UpgradeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The user that a guest becomes. `token`: the guest's, if the request itself is an admin's."""

    user_id: Annotated[
        str, Meta(min_length=1, max_length=_USER_ID_CHARS),
        Refusal(
            MissingUserId, InvalidData, expected=f"text of at most {_USER_ID_CHARS} characters"
        ),
    ]
    token: Annotated[str, Meta(max_length=100)] | None = None


UPGRADE: Final = BodyType(UpgradeBody, '{"user_id": "..."}', is_lenient=True)


class Carried(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fate of a guest's rows. `pending`: so many are moved within seconds."""

    moved: int
    skipped: int
    pending: int = 0


class Upgraded(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's token is the user's now."""

    upgraded: bool
    user_id: str
    carried: Carried
