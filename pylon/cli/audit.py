"""`pylonctl audit`: the newest records of sign-ins and changes of accounts of the running server.

The verb calls `GET /api/admin/auth/audit`. No record has a secret.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import click

from pylon import limits
from pylon.cli.admin_client import AdminClient
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings


@click.command()
@click.option("--user", metavar="ID", help="About this user only.")
@click.option("--tenant", metavar="ID", help="Of this organisation only.")
@click.option("--action", metavar="WORD", help="Of this action only, for example sign_in_failed.")
@click.option("--before", metavar="UNIX_S", type=click.IntRange(min=0), help="Older ones only.")
@click.option("--limit", type=click.IntRange(1, limits.AUDIT_LISTED), default=100,
              show_default=True, help="How many.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
def audit(
    user: str | None, tenant: str | None, action: str | None, before: int | None, limit: int,
    token: str | None, dev: bool,
) -> None:
    """List the newest records of sign-ins and changes of accounts."""
    wanted: dict[str, str | int | None] = {
        "user_id": user, "tenant_id": tenant, "action": action, "before": before, "limit": limit,
    }
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found: list[dict[str, Any]] = server.request("GET", f"/api/admin/auth/audit?{query}")
    lines = [audit_line(record) for record in found]
    result({"records": found}, "\n".join(lines) or "no records")


def audit_line(record: dict[str, Any]) -> str:
    """Return a record as a line for people."""
    at = datetime.fromtimestamp(record["created_at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    parts = [at, record["action"], record["user_id"] or "-"]
    if record["actor_id"] != record["user_id"]:
        parts.append(f"by {record['actor_id'] or '-'}")
    if not record["success"]:
        parts.append(f"refused: {record['reason'] or '-'}")
    elif record["reason"]:
        parts.append(record["reason"])
    parts += [text for text in (record["ip"], record["user_agent"]) if text]
    return "  ".join(parts)
