"""Files and administration for asyncio."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from pylon_client import admin, files
from pylon_client.async_shell import AsyncShell
from pylon_client.files import Progress, StoredFile
from pylon_client.requests import Core


class AsyncFiles:
    """The files of the server."""

    def __init__(self, shell: AsyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    async def upload(
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
            return await self._shell.run(
                files.upload(self._core, stream, size, name, kind, on_progress)
            )

    async def download(
        self, file_id: str, sink: str | Path | BinaryIO, *, on_progress: Progress | None = None
    ) -> int:
        """Write a file to a path or a binary file object. Return the number of its bytes.

        A path gets the file when it is whole, and nothing if the download fails.
        """
        with files.open_sink(sink) as stream:
            return await self._shell.run(files.download(self._core, file_id, stream, on_progress))

    async def get(self, file_id: str) -> StoredFile:
        """Return a file without its bytes. Raises: NotFoundError."""
        return await self._shell.run(files.describe(self._core, file_id))

    async def sign(self, file_id: str, *, expires_s: int = 3600, download: bool = False) -> str:
        """Return a link that works without a session, for so many seconds."""
        signed = await self._shell.run(files.sign(self._core, file_id, expires_s, download))
        return str(signed["url"])

    async def list(self, **parameters: str) -> Sequence[StoredFile]:
        """Return the caller's files, for admins those of all. ``type="image/png"`` and
        ``attached="false"`` restrict them."""
        return await self._shell.run(files.list_files(self._core, parameters))

    async def change(self, file_id: str, **values: Any) -> None:
        """Set `name`, or `public`."""
        await self._shell.run(files.change(self._core, file_id, values))

    async def delete(self, file_id: str) -> None:
        """Delete a file."""
        await self._shell.run(files.delete(self._core, file_id))


class AsyncUsers:
    """The users of the app, for administrators."""

    def __init__(self, shell: AsyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    async def _call(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        return await self._shell.run(admin.call(self._core, method, path, body, parameters))

    async def list(self, user: str | None = None) -> Any:
        """Return the users, or the one with this id or address."""
        return await self._call("GET", admin.USERS, user=user)

    async def create(self, email: str, *, password: str | None = None, **fields: Any) -> Any:
        """Make a user. Without a password they sign in by a code, a link or a provider."""
        body = {**fields, "email": email, "password": password}
        return await self._call("POST", admin.USERS, body)

    async def lock(self, user_id: str, *, reason: str | None = None) -> Any:
        """Lock a user out, and end their sessions."""
        return await self._call("POST", admin.user_path(user_id, "lock"), {"reason": reason})

    async def unlock(self, user_id: str) -> Any:
        """Let a user in again."""
        return await self._call("POST", admin.user_path(user_id, "unlock"), {})

    async def set_password(self, user_id: str, password: str) -> Any:
        """Give a user another password."""
        path = admin.user_path(user_id, "password")
        return await self._call("POST", path, {"password": password})

    async def reset_totp(self, user_id: str) -> Any:
        """Remove the second factor of a user."""
        return await self._call("POST", admin.user_path(user_id, "reset-totp"), {})

    async def export(self, user_id: str) -> Any:
        """Return what the server keeps about a user."""
        return await self._call("GET", admin.user_path(user_id, "export"))

    async def delete(self, user_id: str) -> Any:
        """Delete a user and their sign-in."""
        return await self._call("DELETE", admin.user_path(user_id))


class AsyncSessions:
    """The sessions of the app, for administrators."""

    def __init__(self, shell: AsyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    async def list(self, user_id: str | None = None) -> Any:
        """Return sessions, of one user or of all; never a token."""
        parameters = {"user_id": user_id}
        return await self._shell.run(
            admin.call(self._core, "GET", admin.SESSIONS, parameters=parameters)
        )

    async def end(self, session_id: str) -> Any:
        """End a session."""
        return await self._shell.run(
            admin.call(self._core, "DELETE", admin.session_path(session_id))
        )

    async def purge(self, **which: Any) -> Any:
        """End the sessions of a user (`user_id`), those made before a time (`before`), or all."""
        return await self._shell.run(admin.call(self._core, "POST", admin.PURGE, which))


class AsyncAdmin:
    """The operations of administrators."""

    def __init__(self, shell: AsyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core
        self.users = AsyncUsers(shell, core)
        self.sessions = AsyncSessions(shell, core)

    async def export(self, entity: str | None, sink: str | Path | BinaryIO) -> int:
        """Write the rows of an entity as JSON lines; None: of all. Return the number of bytes."""
        with files.open_sink(sink) as stream:
            return await self._shell.run(admin.export(self._core, entity, stream))

    async def import_rows(self, entities: dict[str, list[Any]], *, new_ids: bool = False) -> Any:
        """Insert rows by entity. `new_ids`: every row gets a new id."""
        return await self._shell.run(admin.call(
            self._core, "POST", "/api/import", {"entities": entities},
            {"ids": "new"} if new_ids else None,
        ))
