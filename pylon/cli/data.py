"""`pylonctl data list|get|insert|update|delete|watch ENTITY`: rows of the running server.

The verbs are an administrator's requests over HTTP (`admin_client`), so no policy hides a row from
them. Rows go to stdout as JSON, one in a line. `watch` reads the event stream of the sse port;
after a lost connection it goes on from the last change that it has printed.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import orjson

from pylon.cli.admin_client import AdminClient
from pylon.cli.json_options import read_object
from pylon.cli.output import json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config
from pylon.errors import PylonError, Unavailable

_AGAIN_S: Final = 1.0
_DATA: Final = b"data:"
_token_option = click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")


@click.group()
@json_flag
def data() -> None:
    """List, read, write and watch rows of the running server."""


@data.command("list")
@click.argument("entity")
@click.option("--filter", "conditions", default="{}", metavar="JSON",
              help='Conditions as in a query: \'{"done": false}\'.')
@click.option("--order", default=None, metavar="JSON", help='For example \'{"sentAt": "desc"}\'.')
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@_token_option
@dev_flag
@json_flag
def list_rows(
    entity: str, conditions: str, order: str | None, limit: int, token: str | None, dev: bool
) -> None:
    """List rows, one in a line."""
    body = {**read_object("--filter", conditions), "$limit": limit}
    if order is not None:
        body["$order"] = read_object("--order", order)
    with AdminClient(read_settings(dev=dev).config, token) as server:
        rows: list[dict[str, Any]] = server.request("POST", f"/api/query/{_quoted(entity)}", body)
    result({"rows": rows}, "\n".join(map(_line, rows)))


@data.command("get")
@click.argument("entity")
@click.argument("row_id")
@_token_option
@dev_flag
@json_flag
def get_row(entity: str, row_id: str, token: str | None, dev: bool) -> None:
    """Print a row."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        row = server.request("GET", _path(entity, row_id))
    result({"row": row}, _line(row))


@data.command("insert")
@click.argument("entity")
@click.argument("row", metavar="JSON")
@_token_option
@dev_flag
@json_flag
def insert_row(entity: str, row: str, token: str | None, dev: bool) -> None:
    """Insert a row, and print its id."""
    sent = orjson.dumps(read_object("JSON", row))
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made, _ = server.send(_path(entity), sent, f"data-{uuid.uuid4().hex}")
    result(made, str(made["id"]))


@data.command("update")
@click.argument("entity")
@click.argument("row_id")
@click.argument("fields", metavar="JSON")
@_token_option
@dev_flag
@json_flag
def update_row(entity: str, row_id: str, fields: str, token: str | None, dev: bool) -> None:
    """Change fields of a row."""
    patch = read_object("JSON", fields)
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("PATCH", _path(entity, row_id), patch)
    result(done, f"{entity} {row_id} is updated")


@data.command("delete")
@click.argument("entity")
@click.argument("row_id")
@_token_option
@dev_flag
@json_flag
def delete_row(entity: str, row_id: str, token: str | None, dev: bool) -> None:
    """Delete a row."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("DELETE", _path(entity, row_id))
    result(done, f"{entity} {row_id} is deleted")


@data.command("watch")
@click.argument("entity")
@click.option("--since", type=click.IntRange(1), default=None,
              help="Begin with the changes after this seq. Default: from now on.")
@click.option("--count", type=click.IntRange(1), default=None, help="End after so many changes.")
@_token_option
@dev_flag
def watch_rows(
    entity: str, since: int | None, count: int | None, token: str | None, dev: bool
) -> None:
    """Print each change of an entity, as JSON, one in a line. Ctrl-C ends it."""
    config = read_settings(dev=dev).config
    if since is None:
        since = _head(config, token)
        note(f"changes of {entity} after seq {since}")
    left = count
    while left is None or left > 0:
        try:
            for change in _changes(config, token, entity, since):
                click.echo(orjson.dumps(change).decode())
                since = change["seq"]
                if left is not None:
                    left -= 1
                    if not left:
                        return
        except Unavailable as error:
            note(f"{error.message}; again in {_AGAIN_S:g} s")
            time.sleep(_AGAIN_S)


def _changes(config: Config, token: str | None, entity: str, since: int) -> Any:
    """Yield the changes after a cursor, until the stream ends."""
    path = "/events?" + urlencode({"entities": entity, "since": since})
    with AdminClient(config, token, "sse") as server:
        headers = {"Accept": "text/event-stream"}
        for line in server.stream_lines("GET", path, None, headers, is_endless=True):
            if not line.startswith(_DATA):
                continue
            change = orjson.loads(line[len(_DATA):])
            if change.get("kind") and change["seq"] > since:
                yield change


def _head(config: Config, token: str | None) -> int:
    """Return the cursor of now: a pull beyond every change names the next seq."""
    with AdminClient(config, token) as server:
        try:
            pulled = server.request("GET", f"/api/sync/pull?since={10**17}")
        except PylonError as error:
            return int(error.details["oldest_seq"]) - 1
    return int(pulled["cursor"]["last_seq"])


def _path(entity: str, row_id: str | None = None) -> str:
    path = f"/api/entities/{_quoted(entity)}"
    return path if row_id is None else f"{path}/{_quoted(row_id)}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _line(row: dict[str, Any]) -> str:
    return orjson.dumps(row).decode()
