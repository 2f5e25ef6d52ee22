"""`pylonctl seed`: inserts the rows of a file through the running server (spec/http.md §8).

The file is ``{"Entity": [row, ...]}``. A row with an `id` (40 lower-case hex characters) is
inserted once, however often the operator runs the verb. Rows without one are inserted each time.
"""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import orjson

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import ERROR, json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import SystemRandom
from pylon.errors import InvalidJson, NotFound, NotRunning, OptimisticIdConflict, PylonError
from pylon.values import decode_body

_PROGRESS_ROWS: Final = 1_000
_DIAGNOSTICS: Final = 100  # refused rows that the output names


@click.command()
@click.option("--file", "file", default="seed.json", show_default=True, help="The rows.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
@click.pass_context
def seed(ctx: click.Context, file: str, token: str | None, dev: bool) -> None:
    """Insert the rows of a file through the running server. Exit 1 if any is refused."""
    try:
        document = _read(Path(file))
    except PylonError as error:
        code = "SEED_FILE_READ" if isinstance(error, NotFound) else "SEED_INVALID_JSON"
        note(error.message)
        result({"code": code, "ok": False, "seeded": {}, "total": 0,
                "diagnostics": [_diagnostic(code, error.message)]}, "")
        ctx.exit(ERROR)
    seeded: dict[str, int] = {}
    there: dict[str, int] = {}
    refused: list[dict[str, Any]] = []
    failed = 0
    with AdminClient(read_settings(dev=dev).config, token) as server:
        for number, (entity, index, row) in enumerate(document, 1):
            seeded.setdefault(entity, 0)
            try:
                new = _insert(server, entity, row)
            except NotRunning:
                raise
            except PylonError as error:
                failed += 1
                text = f"{entity}[{index}]: {error.message}"
                if failed <= _DIAGNOSTICS:
                    refused.append(_diagnostic("SEED_INSERT_FAILED", text, error.code))
                    note(text)
                if error.retryable:  # `send` has tried several times: other rows would fail too
                    break
            else:
                counts = seeded if new else there
                counts[entity] = counts.get(entity, 0) + 1
            if number % _PROGRESS_ROWS == 0:
                note(f"{number} of {len(document)} rows")
    total = sum(seeded.values())
    body = {
        "code": "SEED_PARTIAL" if failed else "SEED_OK", "ok": not failed, "seeded": seeded,
        "total": total, "present": there, "failed": failed, "diagnostics": refused,
    }
    parts = [f"{total} rows inserted"]
    parts += [f"{sum(there.values())} were there"] if there else []
    parts += [f"{failed} refused"] if failed else []
    result(body, ", ".join(parts))
    ctx.exit(ERROR if failed else 0)


def _read(path: Path) -> list[tuple[str, int, Any]]:
    """Return the rows of the file as (entity, index, row).

    Raises:
        NotFound: the file cannot be read.
        PylonError: it is not JSON, or does not have the form above.
    """
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as ex:
        raise NotFound(f"{path} cannot be read: {ex.strerror}") from ex
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as ex:
        raise InvalidJson(f"{path}:{ex.lineno}:{ex.colno}: {ex.msg}") from ex
    document = decode_body(raw, nodes=len(raw))  # the operator's own file
    if not isinstance(document, dict) or not all(isinstance(r, list) for r in document.values()):
        raise InvalidJson(f'{path}: expected {{"Entity": [rows]}}')
    return [
        (entity, index, row) for entity, rows in document.items() for index, row in enumerate(rows)
    ]


def _insert(server: AdminClient, entity: str, row: Any) -> bool:
    """Insert a row. Return whether it is new.

    Raises:
        PylonError: the error that the server returned.
    """
    body = orjson.dumps(row, option=orjson.OPT_SORT_KEYS)
    if isinstance(row, dict) and row.get("id") is not None:
        key = hashlib.blake2b(entity.encode() + b"\0" + body, digest_size=16).hexdigest()
    else:
        key = SystemRandom().token_hex(16)  # recognises only retries of this request
    try:
        _, replayed = server.send(f"/api/entities/{quote(entity, safe='')}", body, f"seed:{key}")
    except OptimisticIdConflict:
        return False  # inserted before; the server has forgotten the key, or the row has changed
    return not replayed


def _diagnostic(code: str, message: str, cause: str | None = None) -> dict[str, Any]:
    body = {"severity": "error", "code": code, "message": message}
    return body if cause is None else {**body, "cause": cause}
