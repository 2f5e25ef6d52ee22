"""`pylonctl session list|revoke|purge`: the sessions of the running server.

The verbs call the admin routes of `pylon.api.admin.sessions` over HTTP. No output has a token.
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

_token_option = click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
_user_option = click.option("--user", metavar="ID", help="Of this user only.")


@click.group()
@json_flag
def session() -> None:
    """List and end sessions."""


@session.command("list")
@_user_option
@_token_option
@dev_flag
@json_flag
def list_sessions(user: str | None, token: str | None, dev: bool) -> None:
    """List the newest sessions, of all users or of one."""
    query = "" if user is None else f"?user_id={quote(user, safe='')}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found: list[dict[str, Any]] = server.request("GET", f"/api/admin/auth/sessions{query}")
    lines = [session_line(each) for each in found]
    result({"sessions": found}, "\n".join(lines) or "no sessions")


@session.command("revoke")
@click.argument("session_id")
@_token_option
@dev_flag
@json_flag
def revoke_session(session_id: str, token: str | None, dev: bool) -> None:
    """End one session. SESSION_ID is the first column of the list."""
    path = f"/api/admin/auth/sessions/{quote(session_id, safe='')}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("DELETE", path)
    result(done, f"{session_id} has ended")


@session.command("purge")
@_user_option
@click.option("--older-than-days", type=click.IntRange(min=0), help="Sign-ins before that only.")
@click.option("--all", "is_for_all", is_flag=True, help="All sessions of all users.")
@_token_option
@dev_flag
@json_flag
def purge_sessions(
    user: str | None, older_than_days: int | None, is_for_all: bool, token: str | None, dev: bool
) -> None:
    """End the sessions of a user, old ones, or all. Their users sign in again."""
    body: dict[str, Any] = {}
    if user is not None:
        body["user_id"] = user
    if older_than_days is not None:
        body["before"] = int(time.time()) - older_than_days * 86_400
    if not body and not is_for_all:
        raise click.UsageError("say which: --user, --older-than-days, or --all")
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("POST", "/api/admin/sessions/purge", body)
    result(done, f"{done['revoked']} sessions have ended")


def session_line(found: dict[str, Any]) -> str:
    """Return a session as a line for people."""
    return (
        f"{found['id']}  {found['user_id']}  {found['device'] or '-'}  "
        f"signed in {_time(found['created_at'])}, seen {_time(found['last_seen_at'])}"
    )


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
