"""`pylonctl import FILE`: rows from JSON lines, through the running server.

The lines are those of `pylonctl export`. They are sent in portions that the server takes in one
request; it checks every row, and each becomes a change that clients see. Rows whose id is there
already are refused one by one, so an import that broke off can be run again.
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
from pylon.cli.running import find
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import NotRunning, PylonError, Unavailable

_PORTION_BYTES: Final = 4 * 1024 * 1024  # the server takes limits.BODY_BYTES
_PORTION_ROWS: Final = 5_000
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
    if find(config) is None:
        raise NotRunning(
            f"nothing runs on {config.db_path} (PYLON_DB_PATH)",
            hint="rows are checked and logged by the server: pylonctl start, then import",
        )
    tally = _ImportResult()
    path = f"/api/import?ids={'new' if new_ids else 'keep'}"
    with ExitStack() as stack:
        lines: BinaryIO = (
            sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        )
        server = stack.enter_context(AdminClient(config, token))
        for numbers, portion in _portions(lines):
            try:
                tally.add(numbers, list(server.lines("POST", path, portion, _HEADERS)))
            except PylonError as error:
                error.hint = (
                    f"{tally.imported} rows are in; of those from line {numbers[0]} on, more may be"
                    + ("" if new_ids else ": to run it again does no harm")
                )
                raise
            note(f"{tally.imported} rows imported, {tally.failed} refused")
    for error_line in tally.errors:
        note(error_line["text"])
    body = {
        "code": "IMPORT_PARTIAL" if tally.failed else "IMPORT_OK", "ok": not tally.failed,
        "imported": tally.imported, "failed": tally.failed,
        "by_entity": [
            {"entity": name, "inserted": counts[0], "failed": counts[1]}
            for name, counts in sorted(tally.by_entity.items())
        ],
        "errors": [e["error"] for e in tally.errors],
    }
    result(body, f"{tally.imported} rows imported, {tally.failed} refused")
    ctx.exit(ERROR if tally.failed else 0)


class _ImportResult:
    """What the server has said so far."""

    def __init__(self) -> None:
        self.imported = 0
        self.failed = 0
        self.by_entity: dict[str, list[int]] = {}
        self.errors: list[dict[str, Any]] = []

    def add(self, numbers: list[int], answer: list[bytes]) -> None:
        """
        Raises:
            PylonError: the server gave up in the middle of the portion.
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


def _portions(lines: BinaryIO) -> Iterator[tuple[list[int], bytes]]:
    """The lines of each request, with their numbers; empty ones are left out."""
    numbers: list[int] = []
    portion: list[bytes] = []
    size_bytes = 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line:
            continue
        if portion and (len(portion) == _PORTION_ROWS or size_bytes + len(line) > _PORTION_BYTES):
            yield numbers, b"\n".join(portion)
            numbers, portion, size_bytes = [], [], 0
        numbers.append(number)
        portion.append(line)
        size_bytes += len(line) + 1
    if portion:
        yield numbers, b"\n".join(portion)
