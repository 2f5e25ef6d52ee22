"""`pylonctl user`: makes, lists, locks and unlocks the users of the running server.

The verbs call the administrators' routes over HTTP. A password is read from standard input or from
the terminal, never from the command line, which others of the machine can read. USER is an id or an
e-mail address.
"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

import click
import orjson

from pylon.cli.admin_client import AdminClient
from pylon.cli.output import json_flag, result
from pylon.cli.session import session_line
from pylon.cli.settings import dev_flag, read_settings

_token_option = click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")


@click.group()
@json_flag
def user() -> None:
    """Make, list, lock and unlock users."""


@user.command("create")
@click.argument("email")
@click.option("--name", help="What others see.")
@click.option("--verified", is_flag=True, help="The address needs no proof.")
@click.option("--password", "with_password", is_flag=True, help="Read a password.")
@_token_option
@dev_flag
@json_flag
def create_user(
    email: str, name: str | None, verified: bool, with_password: bool, token: str | None, dev: bool
) -> None:
    """Make a user. Without a password they sign in by a code, a link or a provider."""
    body: dict[str, Any] = {"email": email, "verified": verified}
    if name is not None:
        body["name"] = name
    if with_password:
        body["password"] = _read_password()
    with AdminClient(read_settings(dev=dev).config, token) as server:
        made = server.request("POST", "/api/admin/auth/users", body)
    result(made, f"{made['user_id']}  {made['email']}")


@user.command("list")
@click.option("--user", "name", metavar="USER", help="This user only.")
@_token_option
@dev_flag
@json_flag
def list_users(name: str | None, token: str | None, dev: bool) -> None:
    """List the newest users, or one."""
    query = "" if name is None else f"?user={quote(name, safe='')}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found: list[dict[str, Any]] = server.request("GET", f"/api/admin/auth/users{query}")
    result({"users": found}, "\n".join(map(_line, found)) or "no users")


@user.command("lock")
@click.argument("name", metavar="USER")
@click.option("--reason", help="For the list and the audit.")
@_token_option
@dev_flag
@json_flag
def lock_user(name: str, reason: str | None, token: str | None, dev: bool) -> None:
    """Lock a user: their sessions and keys end, and they cannot sign in."""
    body = {} if reason is None else {"reason": reason}
    done = _post(name, "lock", body, token, dev)
    result(done, f"{name} is locked; {done['revoked_sessions']} sessions have ended")


@user.command("unlock")
@click.argument("name", metavar="USER")
@_token_option
@dev_flag
@json_flag
def unlock_user(name: str, token: str | None, dev: bool) -> None:
    """Unlock a user, who signs in again."""
    result(_post(name, "unlock", {}, token, dev), f"{name} may sign in again")


@user.command("set-password")
@click.argument("name", metavar="USER")
@_token_option
@dev_flag
@json_flag
def set_password(name: str, token: str | None, dev: bool) -> None:
    """Set the password of a user; their sessions end."""
    done = _post(name, "password", {"password": _read_password()}, token, dev)
    result(done, f"the password is set; {done['revoked_sessions']} sessions have ended")


@user.command("reset-totp")
@click.argument("name", metavar="USER")
@_token_option
@dev_flag
@json_flag
def reset_totp(name: str, token: str | None, dev: bool) -> None:
    """Forget the authenticator app and the backup codes of a user."""
    done = _post(name, "reset-totp", {}, token, dev)
    result(done, "the authenticator is forgotten" if done["reset"] else "there was none")


@user.command("sessions")
@click.argument("name", metavar="USER")
@_token_option
@dev_flag
@json_flag
def list_sessions(name: str, token: str | None, dev: bool) -> None:
    """List the sessions of a user."""
    with AdminClient(read_settings(dev=dev).config, token) as server:
        if "@" in name:
            name = server.request("GET", f"/api/admin/auth/users?user={quote(name, safe='')}")[0][
                "user_id"
            ]
        found: list[dict[str, Any]] = server.request(
            "GET", f"/api/admin/auth/sessions?user_id={quote(name, safe='')}"
        )
    result({"sessions": found}, "\n".join(map(session_line, found)) or "no sessions")


@user.command("export")
@click.argument("user_id")
@_token_option
@dev_flag
def export_user(user_id: str, token: str | None, dev: bool) -> None:
    """Print all that the server keeps of a user, as JSON."""
    path = f"/api/admin/auth/users/{quote(user_id, safe='')}/export"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        found = server.request("GET", path)
    click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))


@user.command("delete")
@click.argument("user_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_token_option
@dev_flag
@json_flag
def delete_user(user_id: str, yes: bool, token: str | None, dev: bool) -> None:
    """End an account for ever, with its rows as `auth.on_delete` of the manifest says."""
    if not yes:
        click.confirm(f"End the account {user_id} for ever?", abort=True)
    path = f"/api/admin/auth/users/{quote(user_id, safe='')}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        done = server.request("DELETE", path)
    result(done, f"the account {user_id} has ended")


def _post(name: str, verb: str, body: dict[str, Any], token: str | None, dev: bool) -> Any:
    path = f"/api/admin/auth/users/{quote(name, safe='')}/{verb}"
    with AdminClient(read_settings(dev=dev).config, token) as server:
        return server.request("POST", path, body)


def _read_password() -> str:
    """Read a password from the terminal, or the first line of standard input."""
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    return sys.stdin.readline().rstrip("\n")


def _line(found: dict[str, Any]) -> str:
    state = "locked" if found["locked_at"] is not None else "active"
    methods = ",".join(found["sign_in_methods"]) or "-"
    return f"{found['user_id']}  {found['email'] or '-'}  {state}  {methods}"
