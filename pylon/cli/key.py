"""`pylonctl key create|list|revoke`: the API keys of users of the running server.

The verbs call the admin routes of keys over HTTP (`pylon.api.identity.routes`). Only `create` shows
a key, once.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings

_PATH = "/api/admin/api-keys"
_token_option = click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")


@click.group()
@json_flag
def key() -> None:
    """Make, list and revoke API keys of users."""


@key.command("create")
@click.option("--user", metavar="ID", required=True, help="The owner.")
@click.option("--scopes", required=True, help="For example 'entity:*:read rooms'; '*': everything.")
@click.option("--name", default="untitled", show_default=True)
@click.option("--days", type=click.IntRange(min=1), help="How long it lives; else it has no end.")
@_token_option
@dev_flag
@json_flag
def create_key(
    user: str, scopes: str, name: str, days: int | None, token: str | None, dev: bool
) -> None:
    """Make a key, and print it."""
    body: dict[str, Any] = {"user_id": user, "scopes": scopes, "name": name}
    if days is not None:
        body["expires_at"] = int(time.time()) + days * 86_400
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made = server.request("POST", _PATH, body)
    result(made, made["key"])


@key.command("list")
@click.option("--user", metavar="ID", help="Of this user only.")
@_token_option
@dev_flag
@json_flag
def list_keys(user: str | None, token: str | None, dev: bool) -> None:
    """List the newest keys, of all users or of one."""
    query = "" if user is None else f"?user_id={quote(user, safe='')}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found: list[dict[str, Any]] = server.request("GET", f"{_PATH}{query}")
    result({"keys": found}, "\n".join(key_line(each) for each in found) or "no keys")


@key.command("revoke")
@click.argument("key_id")
@_token_option
@dev_flag
@json_flag
def revoke_key(key_id: str, token: str | None, dev: bool) -> None:
    """Revoke one key. KEY_ID is the first column of the list."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("DELETE", f"{_PATH}/{quote(key_id, safe='')}")
    result(done, f"{key_id} has ended")


def key_line(found: dict[str, Any]) -> str:
    """Return a key as a line for people."""
    used = found["last_used_at"]
    return (
        f"{found['id']}  {found['user_id']}  {found['name']}  {found['scopes'] or '*'}  "
        f"used {_time(used) if used else 'never'}"
    )


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
