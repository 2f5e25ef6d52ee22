"""Errors of files and uploads.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class FileNotFound(PylonError):
    """There is no such file for this caller: a file that the caller may not read is treated as one
    that does not exist. An upload that has expired is gone too.

    Remedy: check the id, and whether the caller may read the file, or the row it is attached to.
    """

    code = "FILE_NOT_FOUND"
    status = 404


class FileNotAttachable(PylonError):
    """A row names a file that the caller may not attach: it does not exist, belongs to somebody
    else, is not complete, or is attached to another row or field. The error names the field.

    Remedy: upload the file as the caller who writes the row, and attach it once.
    """

    code = "FILE_NOT_ATTACHABLE"
    status = 409


class FileQuotaExceeded(PylonError):
    """The files of this user would take more than PYLON_FILES_QUOTA_BYTES.

    Remedy: delete files, or ask the operator for more.
    """

    code = "FILE_QUOTA_EXCEEDED"
    status = 507


class StorageFull(PylonError):
    """The disk of the files has less free space than limits.FILES_FREE_BYTES. Nothing was stored.

    Remedy: free space on the disk, or enlarge it; uploads then work again without a restart.
    """

    code = "STORAGE_FULL"
    status = 507


class UploadIncomplete(PylonError):
    """The upload has no bytes yet, or fewer or others than its `size` and `sha256` say.

    Remedy: send all bytes to the URL of the upload, then confirm it.
    """

    code = "UPLOAD_INCOMPLETE"
    status = 409


class UploadFinished(PylonError):
    """The upload is complete, so its bytes cannot be replaced.

    Remedy: begin a new upload.
    """

    code = "UPLOAD_FINISHED"
    status = 409


class UploadConflict(PylonError):
    """The offset of the request is not the number of bytes that the server has (tus).

    Remedy: ask for the offset with HEAD, and continue there.
    """

    code = "UPLOAD_OFFSET_CONFLICT"
    status = 409


class UploadLocked(PylonError):
    """Another request is sending bytes of this upload.

    Remedy: wait until it has ended, ask for the offset with HEAD, and continue there.
    """

    code = "UPLOAD_LOCKED"
    status = 423
    retryable = True


class ChecksumMismatch(PylonError):
    """The bytes have another checksum than the request says (tus); they were dropped.

    Remedy: send them again.
    """

    code = "CHECKSUM_MISMATCH"
    status = 460


class UploadVersion(PylonError):
    """The request has no Tus-Resumable header, or names another version than 1.0.0.

    Remedy: send Tus-Resumable: 1.0.0.
    """

    code = "UPLOAD_VERSION"
    status = 412


class InvalidMultipart(PylonError):
    """The body is no valid multipart/form-data, or has no file part.

    Remedy: send one part with a filename; see docs/files.md.
    """

    code = "INVALID_MULTIPART"
    status = 400


class UnsupportedMediaType(PylonError):
    """The body has a Content-Type or a Content-Encoding that the route does not take.

    Remedy: send what the message names.
    """

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class RangeNotSatisfiable(PylonError):
    """The range begins behind the end of the file. `size` is its length in bytes.

    Remedy: ask for a range within the file.
    """

    code = "RANGE_NOT_SATISFIABLE"
    status = 416


class LinkInvalid(PylonError):
    """The signature of the link does not count: it has expired, was changed, or was made by a
    secret key that the server no longer has.

    Remedy: ask for a new link (POST /api/files/:id/sign).
    """

    code = "LINK_INVALID"
    status = 403
