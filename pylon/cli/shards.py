"""`pylonctl shards list|make|move|stop`: the simulations of the running server.

They are asked over HTTP, as every admin may (`pylon.api.realtime.shards`).
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
    """Every shard, with its worker, ticks and subscribers. Exit code 1 if one has failed."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found: list[dict[str, Any]] = server.ask("GET", "/api/shards")
    lines = [_line(shard) for shard in found]
    result({"shards": found}, "\n".join(lines) or "no shards")
    ctx.exit(ERROR if any("traceback" in shard for shard in found) else 0)


@shards.command("make")
@click.argument("shard_id")
@click.option("--params", default="{}", metavar="JSON", help="What the simulation gets to know.")
@_token_option
@dev_flag
@json_flag
def make_shard(shard_id: str, params: str, token: str | None, dev: bool) -> None:
    """Make a shard, unless it is there."""
    try:
        given = orjson.loads(params)
    except orjson.JSONDecodeError as ex:
        raise InvalidData(f"--params is no JSON: {ex}", hint='Give an object: {"map": "n"}') from ex
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made = server.ask("POST", "/api/shards", {"id": shard_id, "params": given})
    result(made, _line(made))


@shards.command("move")
@click.argument("shard_id")
@click.option("--to", "worker", help="The worker's number. Default: where its id says.")
@_token_option
@dev_flag
@json_flag
def move_shard(shard_id: str, worker: str | None, token: str | None, dev: bool) -> None:
    """Have a shard live at another worker. Its subscribers come back; what it saves goes along."""
    path = f"/api/shards/{quote(shard_id, safe='')}/move"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        moved = server.ask("POST", path, {"worker": worker})
    result(moved, f"{shard_id} lives at {'its own' if worker is None else worker} worker now")


@shards.command("stop")
@click.argument("shard_id")
@_token_option
@dev_flag
@json_flag
def stop_shard(shard_id: str, token: str | None, dev: bool) -> None:
    """Stop a shard and forget its saved state."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        ended = server.ask("DELETE", f"/api/shards/{quote(shard_id, safe='')}")
    result(ended, f"{shard_id} is stopped")


def _line(shard: dict[str, Any]) -> str:
    state = "running" if shard["running"] else f"stopped ({shard['stopped_because']})"
    line = (
        f"{shard['id']}: {state}, worker {shard['worker']}, tick {shard['tick']}, "
        f"{shard['subscribers']} subscribers, {shard['input_queue']} inputs waiting"
    )
    traceback = shard.get("traceback")
    return line if traceback is None else f"{line}\n{traceback}"
