"""`pylonctl policy test|explain`: evaluates rules of policies, and says why they allow or deny.

`test` evaluates an expression for a caller and rows of the command line; `explain` the policies of
an action for a caller and a stored row, or for a room. Both print the tree of verdicts
(`pylon.policy.verdicts`) and exit with 1 for a denial. They read the database file of a running
server, or of one that has stopped, and write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import click
import orjson

from pylon.app import App, build_app
from pylon.app_manifest import read_app_manifest
from pylon.auth_context import AuthContext
from pylon.cli.json_options import read_object
from pylon.cli.output import ERROR, json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import EntityNotFound, InvalidData, NotFound
from pylon.manifest.model import Entity, Manifest
from pylon.policy.check import check
from pylon.policy.entity_rules import Action
from pylon.policy.grammar import PolicyInvalid
from pylon.policy.refusals import RuleVerdict
from pylon.policy.related import RelatedRows
from pylon.policy.room_rules import RoomAction
from pylon.policy.scope import Scope, entity_scope, row_scope
from pylon.policy.verdicts import Verdict, causes_of, describe, judge_rule
from pylon.storage.factory import open_store
from pylon.storage.interface import Reader
from pylon.storage.related import StoredRelated

_AUTH_KEYS: Final = {
    "userId": "user_id", "tenantId": "tenant_id", "roles": "roles", "isGuest": "is_guest",
    "isAdmin": "is_admin",
}
_ROW_ACTIONS: Final = ("read", "insert", "update", "delete")
_ROOM_ACTIONS: Final = ("join", "broadcast", "presence")
_auth_option = click.option(
    "--auth", "auth_json", metavar="JSON", default="{}",
    help=f"The caller: {', '.join(_AUTH_KEYS)}. Default: nobody.",
)


@click.group()
@json_flag
def policy() -> None:
    """Evaluate rules of policies, and say why they allow or deny."""


@policy.command("test")
@click.argument("expression")
@_auth_option
@click.option("--row", "row_json", metavar="JSON", default="{}", help="The row: `data`.")
@click.option("--existing", "existing_json", metavar="JSON",
              help="The row before an update: `existing`. Default: the same row.")
@click.option("--entity", metavar="ENTITY",
              help="The entity of the rows, for the types of their fields.")
@click.option("--stored", is_flag=True, help="Let exists(...) ask the rows of the database.")
@dev_flag
@json_flag
@click.pass_context
def test_rule(
    ctx: click.Context, expression: str, auth_json: str, row_json: str,
    existing_json: str | None, entity: str | None, stored: bool, dev: bool,
) -> None:
    """Evaluate EXPRESSION for a caller and a row, and print the verdict of each part."""
    auth = _read_auth(auth_json)
    data = read_object("--row", row_json)
    existing = data if existing_json is None else read_object("--existing", existing_json)
    config = read_settings(dev=dev).config
    manifest = read_app_manifest(config) if entity is not None or stored else None
    rule = _check(expression, _scope_of(manifest, entity, data, existing))
    if stored and manifest is not None:
        with _stored_rows(build_app(config, manifest)) as (_, related):
            verdict = judge_rule(rule, auth, data, existing, related)
    else:
        verdict = judge_rule(rule, auth, data, existing, _NoRows())
    result(_test_body(verdict), "\n".join(_test_lines(verdict)))
    ctx.exit(0 if verdict.holds else ERROR)


@policy.command("explain")
@click.option("--as", "user", metavar="USER_ID", help="The caller. Default: nobody.")
@_auth_option
@click.option("--entity", metavar="ENTITY", help="The entity of the row.")
@click.option("--id", "row_id", metavar="ID", help="The stored row.")
@click.option("--room", metavar="NAME", help="A room, in place of a row.")
@click.option("--action", type=click.Choice((*_ROW_ACTIONS, *_ROOM_ACTIONS)),
              help="Default: read, and join for a room.")
@click.option("--row", "row_json", metavar="JSON", default="{}",
              help="Of an insert the new row, of an update its changes.")
@dev_flag
@json_flag
@click.pass_context
def explain_policies(
    ctx: click.Context, user: str | None, auth_json: str, entity: str | None, row_id: str | None,
    room: str | None, action: str | None, row_json: str, dev: bool,
) -> None:
    """Say whether the policies allow an action of a caller, and why."""
    auth = _read_auth(auth_json, user)
    config = read_settings(dev=dev).config
    app = build_app(config, read_app_manifest(config))
    with _stored_rows(app) as (reader, related):
        if room is not None:
            wanted = cast(RoomAction, _action_of(action or "join", _ROOM_ACTIONS, "--room"))
            is_allowed = app.rules.rooms.may(wanted, auth, room, related)
            verdicts = app.rules.rooms.explain(wanted, auth, room, related)
            subject, note = f"{wanted} in {room}", ""
            if not app.rules.rooms:
                note = "the manifest has no policy of rooms, so all rooms are open"
        else:
            named = _entity_of(app.manifest, entity)
            row_action = cast(Action, _action_of(action or "read", _ROW_ACTIONS, "--entity"))
            row = read_object("--row", row_json)
            judged = _Judged(app, named, auth, reader, related)
            is_allowed, verdicts, note = judged.explain(row_action, row_id, row)
            subject = f"{row_action} of {named.name}/{row_id or '(new)'}"
    if auth.is_admin:
        note = "an admin passes all policies"
    elif not verdicts and not is_allowed:
        note = f"no policy has a rule of {subject.split()[0]}, so only admins may"
    word = "allowed" if is_allowed else "denied"
    lines = [f"{subject}: {word}" + (f" ({note})" if note else "")]
    lines += [line for found in verdicts for line in found.lines()]
    body = {
        "allowed": is_allowed, "note": note, "rules": [found.to_json() for found in verdicts],
    }
    result(body, "\n".join(lines))
    ctx.exit(0 if is_allowed else ERROR)


class _Judged:
    """The judgement of a stored or a new row of an entity."""

    def __init__(
        self, app: App, entity: Entity, auth: AuthContext, reader: Reader, related: RelatedRows
    ) -> None:
        self._app = app
        self._entity = entity
        self._auth = auth
        self._reader = reader
        self._related = related
        self._rules = app.rules.for_entity(entity.name)

    def explain(
        self, action: Action, row_id: str | None, fields: dict[str, Any]
    ) -> tuple[bool, list[RuleVerdict], str]:
        """Return whether a request is allowed, the verdicts of its rules, and a remark.

        Args:
            fields: of an insert the new row, of an update its changes.
        """
        rules, auth, related = self._rules, self._auth, self._related
        codec = self._app.codecs[self._entity.name]
        if action == "insert":
            new_id = row_id or self._app.ids.new()
            body = self._app.defaults[self._entity.name].fill(fields, new_id, auth)
            row = codec.insert(body, new_id).row
            is_allowed = rules.may_insert(auth, row, related)
            return is_allowed, rules.explain(action, auth, row, None, related), ""
        before = self._stored_row(row_id)
        if not rules.may_read(auth, before, related):
            found = rules.explain("read", auth, before, None, related)
            return False, found, "the caller may not read the row, so the server answers NOT_FOUND"
        if action == "read":
            return True, rules.explain(action, auth, before, None, related), ""
        if action == "delete":
            is_allowed = rules.may_delete(auth, before, related)
            return is_allowed, rules.explain(action, auth, before, None, related), ""
        row, _ = codec.merge(before, codec.patch(fields, str(row_id)))
        is_allowed = rules.may_update(auth, before, row, related)
        return is_allowed, rules.explain(action, auth, row, before, related), ""

    def _stored_row(self, row_id: str | None) -> dict[str, Any]:
        if row_id is None:
            raise InvalidData("--id is missing: which row?")
        text = self._reader.get(self._entity.name, row_id)
        if text is None:
            raise NotFound(f"There is no row {self._entity.name}/{row_id}")
        row: dict[str, Any] = orjson.loads(text)
        return row


class _NoRows:
    """Refuses the questions of ``exists(...)``."""

    def has_row(self, check: object, values: object) -> bool:
        raise InvalidData(
            "exists(...) asks rows of the database", hint="add --stored to read them"
        )


@contextmanager
def _stored_rows(app: App) -> Iterator[tuple[Reader, RelatedRows]]:
    """Open a reader of the database: all that it answers is of one commit or a later one."""
    reader = open_store(app.config).open_reader(app.manifest)
    try:
        yield reader, StoredRelated(lambda read: read(reader))
    finally:
        reader.close()


def _read_auth(text: str, user: str | None = None) -> AuthContext:
    given = read_object("--auth", text)
    if user is not None:
        given["userId"] = user
    unknown = next((key for key in given if key not in _AUTH_KEYS), None)
    if unknown is not None:
        raise InvalidData(f'--auth has "{unknown}" (known: {", ".join(_AUTH_KEYS)})')
    roles = given.get("roles")
    if roles is not None and (
        not isinstance(roles, list) or not all(isinstance(role, str) for role in roles)
    ):
        raise InvalidData('roles of --auth is a list of texts, for example ["editor"]')
    for key in ("userId", "tenantId"):
        if not isinstance(given.get(key), str | None):
            raise InvalidData(f"{key} of --auth is a text or null")
    for key in ("isGuest", "isAdmin"):
        if not isinstance(given.get(key, False), bool):
            raise InvalidData(f"{key} of --auth is true or false")
    values = {_AUTH_KEYS[key]: value for key, value in given.items()}
    return AuthContext(**{**values, "roles": tuple(roles or ())})


def _entity_of(manifest: Manifest, name: str | None) -> Entity:
    entity = manifest.by_name.get(name or "")
    if entity is None:
        known = ", ".join(sorted(manifest.by_name)) or "none"
        raise EntityNotFound(f'Unknown entity "{name or ""}" -- known entities: {known}')
    return entity


def _action_of(action: str, known: tuple[str, ...], option: str) -> str:
    if action not in known:
        raise InvalidData(f"{action} is no action of {option} (known: {', '.join(known)})")
    return action


def _scope_of(
    manifest: Manifest | None, entity: str | None, data: Mapping[str, Any],
    existing: Mapping[str, Any],
) -> Scope:
    entities = {} if manifest is None else manifest.by_name
    if manifest is not None and entity is not None:
        return entity_scope(_entity_of(manifest, entity), entities)
    return row_scope({**existing, **data}, entities)


def _check(expression: str, scope: Scope) -> Any:
    try:
        return check(expression, scope)
    except PolicyInvalid as invalid:
        raise InvalidData(
            f"The expression is wrong at character {invalid.at + 1}: {invalid.message}",
            hint="--entity gives the fields of the row the types of the manifest",
        ) from None


def _test_body(verdict: Verdict) -> dict[str, Any]:
    because = [describe(cause) for cause in causes_of(verdict)]
    return {"holds": verdict.holds, "verdict": verdict.to_json(), "because": because}


def _test_lines(verdict: Verdict) -> Iterator[str]:
    yield "true" if verdict.holds else "false"
    yield from verdict.lines()
    for cause in causes_of(verdict):
        yield f"because {describe(cause)}"
