"""Files: upload, download, list, sign, delete (``/api/files``).

A file up to 8 MiB goes in one request. A larger one goes in pieces of 8 MiB by tus 1.0; after a
lost connection the client asks how far it has got, and goes on from there. A download takes pieces
of 8 MiB by ranges and checks that they are of one version (``If-Range``); it goes on after lost
connections as well. So memory holds one piece.

Called by both shells.
"""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode, urljoin

import msgspec

from pylon_client.effects import Answer, Pause, Request, Steps
from pylon_client.errors import APIConnectionError, APIError, APIStatusError, ConflictError
from pylon_client.requests import Core, decode, decode_object, may_pass, perform, send_json

PIECE_BYTES: Final = 8 * 1024 * 1024
_RESUMPTIONS: Final = 8  # lost connections in a row, without a byte in between
_PAUSE_S: Final = 1.0
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_NO_RANGE: Final = 416

Progress = Callable[[int, "int | None"], object]


class StoredFile(msgspec.Struct, frozen=True):
    """A file on the server. `id` is what a field of type file takes."""

    id: str
    url: str
    size: int
    type: str | None = None
    sha256: str | None = None
    name: str | None = None


def open_source(
    source: str | Path | bytes | BinaryIO, stack: ExitStack
) -> tuple[BinaryIO, int, str]:
    """Return a source as a stream, the number of its bytes, and its name."""
    if isinstance(source, bytes):
        return io.BytesIO(source), len(source), "file"
    if isinstance(source, str | Path):
        path = Path(source)
        return stack.enter_context(path.open("rb")), path.stat().st_size, path.name
    start = source.tell()
    size = source.seek(0, io.SEEK_END) - start
    source.seek(start)
    return source, size, Path(str(getattr(source, "name", "file"))).name


@contextmanager
def open_sink(sink: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """Give a stream to write to. A path gets the bytes when the block ends without an error."""
    if not isinstance(sink, str | Path):
        yield sink
        return
    path = Path(sink)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def upload(
    core: Core, source: BinaryIO, size: int, name: str, content_type: str,
    on_progress: Progress | None,
) -> Steps[StoredFile]:
    """Upload the bytes of a source from its position on.

    Args:
        size: how many bytes there are.
        on_progress: is called with the bytes that are there, and the size.

    Raises:
        APIStatusError: 413: it is too large; 507: the quota or the disk is full.
    """
    if size > PIECE_BYTES:
        return (yield from _upload_pieces(core, source, size, name, content_type, on_progress))
    headers = {"Content-Type": content_type, "X-Filename": quote(name)}
    request = Request(
        "POST", "/api/files/upload", source.read(size), headers, is_repeatable=False
    )
    answer = yield from perform(core, request)
    if on_progress is not None:
        on_progress(size, size)
    return msgspec.convert(decode_object(answer), StoredFile)


def _upload_pieces(
    core: Core, source: BinaryIO, size: int, name: str, content_type: str,
    on_progress: Progress | None,
) -> Steps[StoredFile]:
    start = source.tell()
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}"
        for key, value in (("filename", name), ("filetype", content_type))
    )
    headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": metadata}
    made = yield from perform(core, Request(
        "POST", "/api/files/tus", b"", headers, is_repeatable=False
    ))
    location = made.headers.get("location", "")
    if not location:
        raise APIError("the server began an upload without naming its address")
    offset, failures = 0, 0
    last = made
    while offset < size:
        source.seek(start + offset)
        headers = {
            **_TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream",
        }
        piece = source.read(min(PIECE_BYTES, size - offset))
        try:
            last = yield from perform(core, Request(
                "PATCH", location, piece, headers, is_repeatable=False
            ))
            offset, failures = _offset_of(last), 0
        except (APIConnectionError, APIStatusError) as error:
            # 409: the server has more, or less, than the client knows.
            failures += 1
            is_lost = not isinstance(error, APIStatusError) or may_pass(error)
            if failures > _RESUMPTIONS or not (is_lost or isinstance(error, ConflictError)):
                raise
            yield Pause(_PAUSE_S)
            found = yield from perform(core, Request("HEAD", location, headers=_TUS))
            offset = _offset_of(found)
        if on_progress is not None:
            on_progress(offset, size)
    file_id = _finished_id(last) or location.rstrip("/").rpartition("/")[2]
    return (yield from describe(core, file_id))


def _offset_of(answer: Answer) -> int:
    given = answer.headers.get("upload-offset", "")
    if not given.isdecimal():
        raise APIError(f"Upload-Offset is {given!r}: expected a number of bytes")
    return int(given)


def _finished_id(answer: Answer) -> str | None:
    """Return the id of the file, if the last answer of an upload has it."""
    if not answer.content:
        return None
    body = decode(answer)
    return str(body["id"]) if isinstance(body, dict) and "id" in body else None


def describe(core: Core, file_id: str) -> Steps[StoredFile]:
    """Return a file without its bytes. Raises: NotFoundError."""
    path = path_of(file_id)
    answer = yield from perform(core, Request("HEAD", path))
    etag = answer.headers.get("etag", "").strip('"')
    return StoredFile(
        file_id, path, int(answer.headers.get("content-length", 0)),
        answer.headers.get("content-type"), etag.removeprefix("sha256-") or None,
    )


def download(
    core: Core, file_id: str, sink: BinaryIO, on_progress: Progress | None
) -> Steps[int]:
    """Write the bytes of a file to a sink. Return how many there are.

    Raises:
        NotFoundError: there is no such file, or the caller may not read it.
        ConflictError: another file has taken its place meanwhile.
    """
    path, written, etag, failures = path_of(file_id), 0, "", 0
    size: int | None = None
    while size is None or written < size:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity",
                   "Range": f"bytes={written}-{written + PIECE_BYTES - 1}"}
        if etag:
            headers["If-Range"] = etag
        try:
            answer = yield from perform(core, Request("GET", path, headers=headers))
        except APIConnectionError:
            failures += 1
            if failures > _RESUMPTIONS:
                raise
            yield Pause(_PAUSE_S)
            continue
        except APIStatusError as error:
            if error.status == _NO_RANGE and written == 0:
                return 0  # no byte of an empty file is in a range
            raise
        failures = 0
        if answer.status == 200 and written:
            raise ConflictError(412, answer.headers, b"", f"{path} has changed during the download")
        etag = answer.headers.get("etag", "")
        sink.write(answer.content)
        written += len(answer.content)
        size = written if answer.status == 200 else _size_of(answer)
        if on_progress is not None:
            on_progress(written, size)
    return written


def _size_of(answer: Answer) -> int:
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    if not total.isdecimal() or not answer.content:
        raise APIError("the answer of a range does not say how large the file is")
    return int(total)


def sign(
    core: Core, file_id: str, expires_s: int, is_download: bool
) -> Steps[Mapping[str, Any]]:
    """Return a link that works without a session: ``url``, which is whole, and ``expires_at``."""
    body = {"expires_s": expires_s, "download": is_download}
    answer = yield from send_json(core, "POST", f"{path_of(file_id)}/sign", body)
    signed = decode_object(answer)
    return {**signed, "url": urljoin(core.options.url, str(signed["url"]))}


def list_files(core: Core, parameters: Mapping[str, str]) -> Steps[list[StoredFile]]:
    """Return the caller's files, page by page; for admins those of all."""
    found: list[StoredFile] = []
    wanted: dict[str, str] = dict(parameters)
    while True:
        query = urlencode(wanted)
        answer = yield from send_json(
            core, "GET", f"/api/files?{query}" if query else "/api/files"
        )
        body = decode_object(answer)
        found += msgspec.convert(body["files"], list[StoredFile])
        if not body.get("next"):
            return found
        wanted["after"] = str(body["next"])


def change(core: Core, file_id: str, values: Mapping[str, Any]) -> Steps[None]:
    """Set the name of a file, or whether everybody may read it."""
    yield from send_json(core, "PATCH", path_of(file_id), dict(values), is_repeatable=True)


def delete(core: Core, file_id: str) -> Steps[None]:
    """Delete a file."""
    yield from send_json(core, "DELETE", path_of(file_id))


def path_of(file_id: str) -> str:
    """Return the path of a file."""
    return f"/api/files/{quote(file_id, safe='')}"
