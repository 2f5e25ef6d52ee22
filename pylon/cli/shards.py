"""`pylonctl shards list|make|move|stop`: lists and controls the shards of the running server.

The verbs call the admin routes of `pylon.api.realtime.shards` over HTTP.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click
import orjson

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import ERROR, json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import InvalidData

_token_option = click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")


@click.group()
@json_flag
def shards() -> None:
    """List, make, move and stop shards."""


@shards.command("list")
@_token_option
@dev_flag
@json_flag
@click.pass_context
def list_shards(ctx: click.Context, token: str | None, dev: bool) -> None:
    """List the shards with worker, tick and subscribers.

    Exit code 1 if one has failed, or if a shards worker does not answer.
    """
    with AdminClient(read_settings(dev=dev).config, token) as server:
        shards, headers = server.request_with_headers("GET", "/api/shards")
    found: list[dict[str, Any]] = shards
    named = headers.get("X-Pylon-Missing-Workers", "")
    missing = named.split(", ") if named else []
    lines = [_line(shard) for shard in found]
    lines += [f"worker {worker} does not answer: its shards are not listed" for worker in missing]
    result({"shards": found, "missing_workers": missing}, "\n".join(lines) or "no shards")
    ctx.exit(ERROR if missing or any("traceback" in shard for shard in found) else 0)


@shards.command("make")
@click.argument("shard_id")
@click.option("--params", default="{}", metavar="JSON", help="Parameters of the simulation.")
@_token_option
@dev_flag
@json_flag
def make_shard(shard_id: str, params: str, token: str | None, dev: bool) -> None:
    """Make a shard, unless it exists."""
    try:
        given = orjson.loads(params)
    except orjson.JSONDecodeError as ex:
        raise InvalidData(
            f"--params is not valid JSON: {ex}", hint='Give an object: {"map": "n"}'
        ) from ex
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made = server.request("POST", "/api/shards", {"id": shard_id, "params": given})
    result(made, _line(made))


@shards.command("move")
@click.argument("shard_id")
@click.option(
    "--to", "worker",
    help="The worker, as `shards list` shows it: 2, or NODE/2. Default: the one its id maps to.",
)
@_token_option
@dev_flag
@json_flag
def move_shard(shard_id: str, worker: str | None, token: str | None, dev: bool) -> None:
    """Move a shard to another worker, with its saved state. Its subscribers reconnect."""
    path = f"/api/shards/{quote(shard_id, safe='')}/move"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        moved = server.request("POST", path, {"worker": worker})
    where = "its default worker" if worker is None else f"worker {worker}"
    result(moved, f"{shard_id} runs in {where} now")


@shards.command("stop")
@click.argument("shard_id")
@_token_option
@dev_flag
@json_flag
def stop_shard(shard_id: str, token: str | None, dev: bool) -> None:
    """Stop a shard and delete its saved state."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        ended = server.request("DELETE", f"/api/shards/{quote(shard_id, safe='')}")
    result(ended, f"{shard_id} is stopped")


def _line(shard: dict[str, Any]) -> str:
    state = "running" if shard["running"] else f"stopped ({shard['stopped_because']})"
    line = (
        f"{shard['id']}: {state}, worker {shard['worker']}, tick {shard['tick']}, "
        f"{shard['subscribers']} subscribers, {shard['input_queue']} inputs waiting"
    )
    traceback = shard.get("traceback")
    return line if traceback is None else f"{line}\n{traceback}"
