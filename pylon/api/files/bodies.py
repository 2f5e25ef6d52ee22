"""Request bodies of the routes of files. `pylon.openapi.files` derives their schemas."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingField

_Name = Annotated[
    Annotated[str, Meta(max_length=4 * limits.FILE_NAME_BYTES)] | None,
    Refusal(InvalidData, expected="a file name", names_field=True),
]
_Size = Annotated[
    Annotated[int, Meta(ge=0)] | None,
    Refusal(InvalidData, expected="a number of bytes", names_field=True),
]
_Digest = Annotated[
    Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None,
    Refusal(InvalidData, expected="64 lower-case hex characters", names_field=True),
]


class InitBody(msgspec.Struct, frozen=True, kw_only=True):
    """The upload to come. With `size` a file that is too large is refused here."""

    filename: _Name = None
    content_type: Annotated[
        str | None, Refusal(InvalidData, expected="a media type", names_field=True)
    ] = msgspec.field(default=None, name="contentType")
    size: _Size = None
    sha256: _Digest = None


class ConfirmBody(msgspec.Struct, frozen=True, kw_only=True):
    """The upload whose bytes are there."""

    asset_id: Annotated[
        str, Meta(min_length=1), Refusal(MissingField, expected="a file id", names_field=True)
    ] = msgspec.field(name="assetId")


class SignBody(msgspec.Struct, frozen=True, kw_only=True):
    """How long a link lasts, and whether it downloads."""

    expires_s: Annotated[
        int, Meta(ge=1, le=limits.FILE_LINK_S),
        Refusal(
            InvalidData, expected=f"a number of seconds from 1 to {limits.FILE_LINK_S}",
            names_field=True,
        ),
    ] = limits.FILE_READER_LINK_S
    download: Annotated[
        bool, Refusal(InvalidData, expected="true or false", names_field=True)
    ] = False


class PatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a file's record that change."""

    name: _Name = None
    public: Annotated[
        bool | None, Refusal(InvalidData, expected="true or false", names_field=True)
    ] = None


INIT: Final = BodyType(InitBody, '{"filename": "a.png", "contentType": "image/png", "size": 1234}')
CONFIRM: Final = BodyType(ConfirmBody, '{"assetId": "file_..."}')
SIGN: Final = BodyType(SignBody, '{"expires_s": 3600}')
PATCH: Final = BodyType(PatchBody, '{"name": "b.png"}')
