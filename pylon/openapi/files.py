"""Operations of files: uploads, downloads, links, records (docs/files.md)."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors, limits
from pylon.api.files.bodies import ConfirmBody, InitBody, PatchBody, SignBody
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    STORE_ERRORS,
    WRITE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    header,
    listed,
    nullable,
    obj,
    operation,
    path,
    query,
    ref,
    response,
)

_TAG: Final = "files"
_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES: Final[Schema] = {"type": "boolean"}
_BYTES: Final[Schema] = {"type": "string", "format": "binary"}
_OCTETS: Final = "application/octet-stream"
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_COMMON: Final[tuple[ErrorClass, ...]] = (
    *WRITE_ERRORS, errors.Unavailable, errors.ScopeDenied, errors.RateLimited, errors.AuthRequired,
)
_UPLOAD: Final[tuple[ErrorClass, ...]] = (
    *_COMMON, errors.FileQuotaExceeded, errors.InvalidRequest, errors.PayloadTooLarge,
    errors.RequestTimeout, errors.SessionExpired, errors.StorageFull,
    errors.UnsupportedMediaType,
)
_READ: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.FileNotFound, errors.LinkInvalid, errors.RateLimited, errors.ScopeDenied,
    errors.Unavailable,
)
_FILE: Final = path(
    "file_id", "The id of a file",
    {"type": "string", "pattern": "^file_[0-9a-f]{40}(_[A-Za-z0-9_-]{0,80})?$"},
)


def file_schemas() -> dict[str, Schema]:
    """Return the schemas of a stored file and of its record."""
    stored = {
        "id": _TEXT, "url": _TEXT, "size": _COUNT, "type": _TEXT, "sha256": nullable(_TEXT),
        "name": _TEXT,
    }
    return {
        "StoredFile": obj(stored),
        "File": obj({
            **stored, "state": {"enum": ["pending", "ready"]}, "public": _YES,
            "owner": nullable(_TEXT), "entity": nullable(_TEXT), "row_id": nullable(_TEXT),
            "field": nullable(_TEXT), "created_at": _COUNT, "attached_at": nullable(_COUNT),
        }),
    }


def file_paths() -> Paths:
    """Return the paths under /api/files."""
    upload = operation(
        "post", "uploadFile", _TAG, "Store a file that comes in this request",
        {201: response("The file is stored", ref("StoredFile"))},
        raises=(*_UPLOAD, errors.InvalidMultipart, errors.LimitExceeded), security=_SIGNED_IN,
        parameters=[header("X-Filename", _TEXT, "The name of a raw body, percent-encoded")],
    )
    upload["post"]["requestBody"] = {
        "required": True,
        "content": {
            _OCTETS: {"schema": _BYTES},
            "multipart/form-data": {"schema": obj({"file": _BYTES}, ("file",), is_open=True)},
        },
    }
    return {
        "/api/files": operation(
            "get", "files", _TAG, "The caller's files; all of them for an administrator",
            {200: response("A page of files", obj({
                "files": listed(ref("File")), "next": nullable(_TEXT),
            }))},
            raises=(
                *STORE_ERRORS, errors.AuthRequired, errors.Forbidden, errors.InvalidQuery,
                errors.RateLimited, errors.ScopeDenied, errors.Unavailable,
            ),
            security=_SIGNED_IN,
            parameters=[
                query("owner", _TEXT, "A user; others than the caller for administrators only"),
                query("type", _TEXT, "A media type, or a family such as image/*"),
                query("attached", _YES, "Whether a row has the file"),
                query("after", _TEXT, "The `next` of the page before"),
                query(
                    "limit", {"type": "integer", "minimum": 1},
                    f"How many; at most {limits.FILES_PAGE_MAX}",
                ),
            ],
        ),
        "/api/files/upload": upload,
        **_staged(), **_tus(),
        "/api/files/{file_id}": {
            **_download(),
            **operation(
                "patch", "changeFile", _TAG, "Rename a file, or make it public",
                {200: response("The file", ref("File"))},
                raises=(*_COMMON, errors.FileNotFound), parameters=[_FILE],
                security=_SIGNED_IN, body=body_schema(PatchBody),
            ),
            **operation(
                "delete", "deleteFile", _TAG, "Delete a file",
                {204: response("The file is gone")}, raises=(*_COMMON, errors.FileNotFound),
                parameters=[_FILE], security=_SIGNED_IN,
            ),
        },
        "/api/files/{file_id}/sign": operation(
            "post", "signFile", _TAG, "A link that reads a file without a session",
            {200: response("The link", obj({"url": _TEXT, "expires_at": _COUNT}))},
            raises=(*_READ, errors.LimitExceeded, errors.NotSupported),
            parameters=[_FILE], body=body_schema(SignBody),
        ),
    }


def _staged() -> Paths:
    bytes_ = operation(
        "put", "putUploadBytes", _TAG, "Send the bytes of an upload, in place of earlier ones",
        {204: response("The bytes are there")},
        raises=(*_UPLOAD, errors.FileNotFound, errors.UploadFinished),
        parameters=[_FILE], security=_SIGNED_IN,
    )
    bytes_["put"]["requestBody"] = {"required": True, "content": {_OCTETS: {"schema": _BYTES}}}
    return {
        "/api/files/init": operation(
            "post", "initUpload", _TAG, "Begin an upload of three requests",
            {200: response("Where its bytes go", obj({
                "assetId": _TEXT, "uploadUrl": _TEXT, "cdnUrl": _TEXT,
                "expiresAt": {"type": "string", "format": "date-time"},
            }))},
            raises=(
                *_COMMON, errors.FileQuotaExceeded, errors.PayloadTooLarge, errors.StorageFull,
            ),
            security=_SIGNED_IN, body=body_schema(InitBody),
        ),
        "/api/files/uploads/{file_id}": bytes_,
        "/api/files/confirm": operation(
            "post", "confirmUpload", _TAG, "Complete an upload whose bytes are there",
            {200: response("The file is stored", ref("StoredFile"))},
            raises=(
                *_COMMON, errors.FileNotFound, errors.FileQuotaExceeded, errors.MissingField,
                errors.UploadIncomplete, errors.UploadLocked,
            ),
            security=_SIGNED_IN, body=body_schema(ConfirmBody),
        ),
    }


def _tus() -> Paths:
    version = header("Tus-Resumable", _TEXT, "The version of the protocol: 1.0.0")
    about = "tus 1.0.0, https://tus.io/protocols/resumable-upload"
    raises = (
        *_UPLOAD, errors.ChecksumMismatch, errors.FileNotFound, errors.LimitExceeded,
        errors.UploadConflict, errors.UploadLocked, errors.UploadVersion,
    )
    checksum = header("Upload-Checksum", _TEXT, "sha256, a space, the checksum in base64")
    return {
        "/api/files/tus": operation(
            "post", "createResumable", _TAG, f"Begin a resumable upload ({about})",
            {201: response("Location has its URL")}, raises=raises, security=_SIGNED_IN,
            parameters=[
                version, checksum, header("Upload-Length", _COUNT, "The size of the file"),
                header("Upload-Metadata", _TEXT, "filename, filetype and others, in base64"),
            ],
        ),
        "/api/files/tus/{file_id}": {
            **operation(
                "get", "resumable", _TAG, f"The offset of a resumable upload ({about})",
                {200: response("Upload-Offset has it")},
                raises=(
                    *STORE_ERRORS, errors.AuthRequired, errors.FileNotFound, errors.RateLimited,
                    errors.ScopeDenied, errors.Unavailable, errors.UploadVersion,
                ),
                parameters=[_FILE, version], security=_SIGNED_IN,
            ),
            **operation(
                "patch", "appendResumable", _TAG, "Append bytes to a resumable upload",
                {204: response("Upload-Offset has the bytes that the server has")},
                raises=raises, security=_SIGNED_IN,
                parameters=[
                    _FILE, version, checksum,
                    header("Upload-Offset", _COUNT, "The bytes that the server has"),
                ],
            ),
            **operation(
                "delete", "endResumable", _TAG, "End a resumable upload, or delete its file",
                {204: response("The upload is gone")},
                raises=(*_COMMON, errors.FileNotFound, errors.UploadVersion),
                parameters=[_FILE, version], security=_SIGNED_IN,
            ),
        },
    }


def _download() -> dict[str, Any]:
    return operation(
        "get", "file", _TAG, "The bytes of a file, or one range of them",
        {
            200: response("The file", _BYTES, media="*/*"),
            206: response("The range", _BYTES, media="*/*"),
            304: response("The client has these bytes"),
        },
        raises=(*_READ, errors.RangeNotSatisfiable),
        parameters=[
            _FILE,
            query("download", _TEXT, "Have the browser save the file"),
            query("expires", _TEXT, "Of a signed link"),
            query("signature", _TEXT, "Of a signed link"),
            header("Range", _TEXT, "One range of bytes; several are ignored"),
            header("If-Range", _TEXT, "The ETag that the range belongs to"),
            header("If-None-Match", _TEXT, "ETags that the client has"),
        ],
    )
