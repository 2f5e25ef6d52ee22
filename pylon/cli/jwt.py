"""`pylonctl jwt create`: a JWT of a user of the running server.

It calls the admin route of JWTs over HTTP (`pylon.api.identity.jwt_routes`). The server keeps no
JWT, so none can be listed; `pylonctl user lock` and the end of all sessions of a user end them.
"""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings


@click.group()
@json_flag
def jwt() -> None:
    """Make JWTs of users."""


@jwt.command("create")
@click.option("--user", metavar="ID", required=True, help="Whom it acts as.")
@click.option("--scopes", help="For example 'entity:*:read rooms'; else all that the user may do.")
@click.option("--readonly", is_flag=True, help="It changes nothing.")
@click.option("--seconds", type=click.IntRange(min=1),
              help="How long it lasts; else PYLON_JWT_LIFETIME_SECS.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
def create_jwt(
    user: str, scopes: str | None, readonly: bool, seconds: int | None, token: str | None,
    dev: bool,
) -> None:
    """Make a JWT, and print it."""
    body: dict[str, Any] = {"user_id": user, "readonly": readonly}
    if scopes is not None:
        body["scopes"] = scopes
    if seconds is not None:
        body["expires_in"] = seconds
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made = server.request("POST", "/api/admin/auth/jwt", body)
    result(made, made["token"])
