"""Files and administration for blocking code."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from pylon_client import admin, files
from pylon_client.files import Progress, StoredFile
from pylon_client.requests import Core
from pylon_client.sync_shell import SyncShell


class Files:
    """The files of the server."""

    def __init__(self, shell: SyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    def upload(
        self, source: str | Path | bytes | BinaryIO, *, name: str | None = None,
        content_type: str | None = None, on_progress: Progress | None = None,
    ) -> StoredFile:
        """Upload a file.

        Args:
            source: a path, bytes, or a binary file object that can seek.
            name: the name that others see; the path's last part without it.
            content_type: the media type; guessed from the name without it.
            on_progress: is called with the number of bytes that are there, and the size.
        """
        with ExitStack() as stack:
            stream, size, found = files.open_source(source, stack)
            name = name or found
            kind = content_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
            return self._shell.run(
                files.upload(self._core, stream, size, name, kind, on_progress)
            )

    def download(
        self, file_id: str, sink: str | Path | BinaryIO, *, on_progress: Progress | None = None
    ) -> int:
        """Write a file to a path or a binary file object. Return the number of its bytes.

        A path gets the file when it is whole, and nothing if the download fails.
        """
        with files.open_sink(sink) as stream:
            return self._shell.run(files.download(self._core, file_id, stream, on_progress))

    def get(self, file_id: str) -> StoredFile:
        """Return a file without its bytes. Raises: NotFoundError."""
        return self._shell.run(files.describe(self._core, file_id))

    def sign(self, file_id: str, *, expires_s: int = 3600, download: bool = False) -> str:
        """Return a link that works without a session, for so many seconds."""
        return str(self._shell.run(files.sign(self._core, file_id, expires_s, download))["url"])

    def list(self, **parameters: str) -> Sequence[StoredFile]:
        """Return the caller's files, for admins those of all. ``type="image/png"`` and
        ``attached="false"`` restrict them."""
        return self._shell.run(files.list_files(self._core, parameters))

    def change(self, file_id: str, **values: Any) -> None:
        """Set `name`, or `public`."""
        self._shell.run(files.change(self._core, file_id, values))

    def delete(self, file_id: str) -> None:
        """Delete a file."""
        self._shell.run(files.delete(self._core, file_id))


class Users:
    """The users of the app, for administrators."""

    def __init__(self, shell: SyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    def _call(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        return self._shell.run(admin.call(self._core, method, path, body, parameters))

    def list(self, user: str | None = None) -> Any:
        """Return the users, or the one with this id or address."""
        return self._call("GET", admin.USERS, user=user)

    def create(self, email: str, *, password: str | None = None, **fields: Any) -> Any:
        """Make a user. Without a password they sign in by a code, a link or a provider."""
        return self._call("POST", admin.USERS, {**fields, "email": email, "password": password})

    def lock(self, user_id: str, *, reason: str | None = None) -> Any:
        """Lock a user out, and end their sessions."""
        return self._call("POST", admin.user_path(user_id, "lock"), {"reason": reason})

    def unlock(self, user_id: str) -> Any:
        """Let a user in again."""
        return self._call("POST", admin.user_path(user_id, "unlock"), {})

    def set_password(self, user_id: str, password: str) -> Any:
        """Give a user another password."""
        return self._call("POST", admin.user_path(user_id, "password"), {"password": password})

    def reset_totp(self, user_id: str) -> Any:
        """Remove the second factor of a user."""
        return self._call("POST", admin.user_path(user_id, "reset-totp"), {})

    def export(self, user_id: str) -> Any:
        """Return what the server keeps about a user."""
        return self._call("GET", admin.user_path(user_id, "export"))

    def delete(self, user_id: str) -> Any:
        """Delete a user and their sign-in."""
        return self._call("DELETE", admin.user_path(user_id))


class Sessions:
    """The sessions of the app, for administrators."""

    def __init__(self, shell: SyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    def list(self, user_id: str | None = None) -> Any:
        """Return sessions, of one user or of all; never a token."""
        parameters = {"user_id": user_id}
        return self._shell.run(
            admin.call(self._core, "GET", admin.SESSIONS, parameters=parameters)
        )

    def end(self, session_id: str) -> Any:
        """End a session."""
        return self._shell.run(
            admin.call(self._core, "DELETE", admin.session_path(session_id))
        )

    def purge(self, **which: Any) -> Any:
        """End the sessions of a user (`user_id`), those made before a time (`before`), or all."""
        return self._shell.run(admin.call(self._core, "POST", admin.PURGE, which))


class Admin:
    """The operations of administrators."""

    def __init__(self, shell: SyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core
        self.users = Users(shell, core)
        self.sessions = Sessions(shell, core)

    def export(self, entity: str | None, sink: str | Path | BinaryIO) -> int:
        """Write the rows of an entity as JSON lines; None: of all. Return the number of bytes."""
        with files.open_sink(sink) as stream:
            return self._shell.run(admin.export(self._core, entity, stream))

    def import_rows(self, entities: dict[str, list[Any]], *, new_ids: bool = False) -> Any:
        """Insert rows by entity. `new_ids`: every row gets a new id."""
        return self._shell.run(admin.call(
            self._core, "POST", "/api/import", {"entities": entities},
            {"ids": "new"} if new_ids else None,
        ))
