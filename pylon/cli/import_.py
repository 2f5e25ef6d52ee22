"""`pylonctl import FILE`: inserts rows from JSON lines through the running server.

The lines have the form of `pylonctl export`. One request carries a batch of lines. The server
checks every row, and each inserted row becomes a change that clients receive.

Invariants: the server refuses a row whose id exists and continues with the next. So an operator
can repeat an import that broke off. Bounds: `_BATCH_BYTES` and `_BATCH_ROWS` for each request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import orjson

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import ERROR, json_flag, note, result
from pylon.cli.running import find_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import NotRunning, PylonError, Unavailable

_BATCH_BYTES: Final = 4 * 1024 * 1024  # the server accepts limits.BODY_BYTES
_BATCH_ROWS: Final = 5_000
_ERRORS_SHOWN: Final = 100
_HEADERS: Final = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}


@click.command("import")
@click.argument("file", metavar="FILE")
@click.option("--new-ids", is_flag=True, help="Give every row a new id.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
@click.pass_context
def import_(
    ctx: click.Context, file: str, new_ids: bool, token: str | None, dev: bool
) -> None:
    """Insert the rows of FILE (JSON lines; - is stdin). Exit 1 if any is refused."""
    config = read_settings(dev=dev).config
    if find_running(config) is None:
        raise NotRunning(
            f"nothing runs on {config.db_path} (PYLON_DB_PATH)",
            hint="rows are checked and logged by the server: pylonctl start, then import",
        )
    progress = _ImportResult()
    path = f"/api/import?ids={'new' if new_ids else 'keep'}"
    with ExitStack() as stack:
        lines: BinaryIO = (
            sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        )
        server = stack.enter_context(AdminClient(config, token))
        for numbers, batch in _batches(lines):
            try:
                progress.add(numbers, list(server.stream_lines("POST", path, batch, _HEADERS)))
            except PylonError as error:
                error.hint = (
                    f"{progress.imported} rows imported, perhaps more from line {numbers[0]} on"
                    + ("" if new_ids else ": you may run the import again")
                )
                raise
            note(f"{progress.imported} rows imported, {progress.failed} refused")
    for error_line in progress.errors:
        note(error_line["text"])
    body = {
        "code": "IMPORT_PARTIAL" if progress.failed else "IMPORT_OK", "ok": not progress.failed,
        "imported": progress.imported, "failed": progress.failed,
        "by_entity": [
            {"entity": name, "inserted": counts[0], "failed": counts[1]}
            for name, counts in sorted(progress.by_entity.items())
        ],
        "errors": [e["error"] for e in progress.errors],
    }
    result(body, f"{progress.imported} rows imported, {progress.failed} refused")
    ctx.exit(ERROR if progress.failed else 0)


class _ImportResult:
    """The sums of the server's responses so far."""

    def __init__(self) -> None:
        self.imported = 0
        self.failed = 0
        self.by_entity: dict[str, list[int]] = {}
        self.errors: list[dict[str, Any]] = []

    def add(self, numbers: list[int], answer: list[bytes]) -> None:
        """Add the response to one batch.

        Args:
            numbers: the line number in the file of each row of the batch.

        Raises:
            PylonError: the server stopped in the middle of the batch.
        """
        last = orjson.loads(answer[-1]) if answer else {}
        self.imported += int(last.get("imported", 0))
        self.failed += int(last.get("failed", 0))
        for entry in last.get("by_entity", ()):
            counts = self.by_entity.setdefault(entry["entity"], [0, 0])
            counts[0] += entry["inserted"]
            counts[1] += entry["failed"]
        for error in last.get("errors", ()):
            if len(self.errors) < _ERRORS_SHOWN:
                line = numbers[error["row"] - 1]
                text = f"line {line}: {error['entity']}: {error['code']}: {error['message']}"
                self.errors.append({"text": text, "error": {**error, "row": line}})
        if not last.get("done"):
            error = last.get("error", {})
            raise PylonError.from_wire(
                str(error.get("code", Unavailable.code)),
                str(error.get("message", "the server's answer ended early")), None, {},
            )


def _batches(lines: BinaryIO) -> Iterator[tuple[list[int], bytes]]:
    """Yield the body of each request with the line numbers of its rows. Skips empty lines."""
    numbers: list[int] = []
    batch: list[bytes] = []
    size_bytes = 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line:
            continue
        if batch and (len(batch) == _BATCH_ROWS or size_bytes + len(line) > _BATCH_BYTES):
            yield numbers, b"\n".join(batch)
            numbers, batch, size_bytes = [], [], 0
        numbers.append(number)
        batch.append(line)
        size_bytes += len(line) + 1
    if batch:
        yield numbers, b"\n".join(batch)
