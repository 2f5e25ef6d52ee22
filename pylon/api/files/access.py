"""Rights to read a file, and to change it.

The owner and administrators may do both. Everybody may read a public file. A file that is attached
to a row may be read by whoever may read that row, by the policies as they are now: a membership
that has ended counts at once. All others get 404, as for a file that does not exist.

Called by `download` and `listing`.
"""

from __future__ import annotations

import falcon
import gevent

from pylon import limits
from pylon.api.data.access import may_see_row
from pylon.api.http.callers import caller_of
from pylon.api.services import FilesServices
from pylon.auth_context import AuthContext
from pylon.errors import FileNotFound
from pylon.files import signatures
from pylon.files.names import key_of
from pylon.files.records import READY, FileRecord, find_record
from pylon.key_scopes import entity_scope, has_scope


def owns(record: FileRecord, auth: AuthContext) -> bool:
    """Whether a caller may change a file: its owner, or an administrator."""
    return auth.is_admin or (auth.user_id is not None and auth.user_id == record.owner)


def may_read(record: FileRecord, auth: AuthContext, services: FilesServices) -> bool:
    """Whether a caller may read a complete file."""
    if record.is_public or owns(record, auth):
        return True
    entity = services.app.manifest.by_name.get(record.entity or "")
    if entity is None or record.row_id is None:
        return False
    if not has_scope(auth, entity_scope(entity.name, "read")):
        return False
    return may_see_row(services.app, services.store.point, entity, auth, record.row_id)


def readable_file(
    req: falcon.Request, services: FilesServices, file_id: str
) -> tuple[FileRecord, bool]:
    """Return the record of a file that the request may read, and whether a signed link says so.

    Raises:
        FileNotFound: there is none for this caller.
    """
    started_s = services.app.clock.monotonic_s()
    is_signed = _is_signed(req, services, file_id)
    auth = None if is_signed else caller_of(req, services.requests).auth
    record = find_record(services.store, file_id) if key_of(file_id) is not None else None
    if (
        record is not None and record.state == READY
        and (auth is None or may_read(record, auth, services))
    ):
        return record, is_signed
    raise absent(services, started_s)


def own_file(req: falcon.Request, services: FilesServices, file_id: str) -> FileRecord:
    """Return the record of a file that the caller may change.

    Raises:
        FileNotFound: there is none for this caller.
    """
    started_s = services.app.clock.monotonic_s()
    auth = caller_of(req, services.requests).auth
    record = find_record(services.store, file_id) if key_of(file_id) is not None else None
    if record is None or not owns(record, auth):
        raise absent(services, started_s)
    return record


def absent(services: FilesServices, started_s: float) -> FileNotFound:
    """Return the error for an absent file, after the time that a hidden one takes."""
    left_s = started_s + limits.ABSENCE_S - services.app.clock.monotonic_s()
    if left_s > 0:
        gevent.sleep(left_s)
    return FileNotFound("File not found")


def _is_signed(req: falcon.Request, services: FilesServices, file_id: str) -> bool:
    """Whether the query has a signature that counts; False without one.

    Raises:
        LinkInvalid: it has one that does not count.
    """
    signature, expires = req.get_param("signature"), req.get_param("expires")
    if signature is None and expires is None:
        return False
    now_s = services.app.clock.wall_ns() // 1_000_000_000
    if services.keys is None or not signatures.is_signed(
        services.keys, file_id, variant_of(req), expires or "", signature or "", now_s
    ):
        raise signatures.invalid_link()
    return True


def variant_of(req: falcon.Request) -> str:
    """Return the variant of a file that the query asks for."""
    return "download" if req.get_param("download") is not None else "inline"
