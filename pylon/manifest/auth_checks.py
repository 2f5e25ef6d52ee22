"""Auth checks: report entries of the manifest's `auth` that are wrong or have no effect.

Called by `checks`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

from pylon import setting_values
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of, texts_of
from pylon.manifest.model import AuthConfig
from pylon.manifest.name_checks import is_called, list_known, names_of

_DELETE_WORDS: Final = ("delete", "null", "keep")
_ROLES: Final = ("owner", "admin", "member")
_ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)


def check_trusted_origins(root: Node, findings: Findings) -> None:
    """Warn of an entry that no browser's Origin header can equal."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    for node in texts_of(auth, "trusted_origins") if auth is not None else ():
        try:
            setting_values.origin(node.value)
        except ValueError as ex:
            findings.warning(
                "AUTH_ORIGIN_INVALID", f'"{node.value}" is no origin of a browser', node.at,
                str(ex),
            )


def check_user_names(root: Node, findings: Findings) -> None:
    """Warn of an unknown entity or field in auth.user, which may be misspelt."""
    user = root.value.get("auth") if isinstance(root.value, dict) else None
    user = user.value.get("user") if user is not None and isinstance(user.value, dict) else None
    if user is None:
        return
    entities = items_of(root, "entities")
    name = text_of(user, "entity")
    wanted = name.value if name is not None and name.value else AuthConfig().user_entity
    found = next((e for e in entities if is_called(e, wanted)), None)
    if found is None:
        if name is not None and name.value:
            findings.warning(
                "AUTH_NAME_UNKNOWN", f'no entity is called "{wanted}"', name.at,
                list_known(names_of(entities)),
            )
        return
    fields = {"id"} | names_of(items_of(found, "fields"))
    for key in ("expose", "hide"):
        for field in texts_of(user, key):
            close_names = difflib.get_close_matches(field.value, fields, n=1)
            # An unknown field in `hide` is harmless, unless it is a misspelt one.
            if field.value not in fields and (key == "expose" or close_names):
                findings.warning(
                    "AUTH_NAME_UNKNOWN", f'{wanted} has no field "{field.value}"', field.at,
                    f"did you mean {close_names[0]}?" if close_names else list_known(fields),
                )


def check_guest_carry(root: Node, findings: Findings) -> None:
    """Report a field of auth.guest.carry that no entity has: its rows would not follow a guest."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    guest = auth.value.get("guest") if auth is not None and isinstance(auth.value, dict) else None
    if guest is None:
        return
    known = {
        f"{name.value}.{field}"
        for entity in items_of(root, "entities")
        if (name := text_of(entity, "name")) is not None
        for field in names_of(items_of(entity, "fields"))
    }
    for node in texts_of(guest, "carry"):
        if node.value not in known:
            close_names = difflib.get_close_matches(node.value, known, n=1)
            findings.error(
                "AUTH_FIELD_UNKNOWN", f'there is no field "{node.value}" to carry', node.at,
                f"did you mean {close_names[0]}?" if close_names else 'write "Entity.field"',
            )


def check_on_delete(root: Node, findings: Findings) -> None:
    """Report a wrong entry of auth.on_delete or auth.org.on_delete, and warn of fields for users
    that the first leaves out."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    if auth is None or not isinstance(auth.value, dict):
        return
    fields = {
        f"{entity_name.value}.{name.value}": field
        for entity in items_of(root, "entities")
        if (entity_name := text_of(entity, "name")) is not None
        for field in items_of(entity, "fields") if (name := text_of(field, "name")) is not None
    }
    named = auth.value.get("on_delete")
    if named is not None and _check_words(named, "auth.on_delete", fields, findings):
        _warn_of_unnamed(root, auth, named, fields, findings)
    org = auth.value.get("org")
    of_orgs = org.value.get("on_delete") if org is not None and isinstance(org.value, dict) else (
        None
    )
    if of_orgs is not None:
        _check_words(of_orgs, "auth.org.on_delete", fields, findings)


def _check_words(
    named: Node, where: str, fields: Mapping[str, Node], findings: Findings
) -> bool:
    """Report the wrong entries; return whether there is an object."""
    if named.value is None:
        return False
    if not isinstance(named.value, dict):
        findings.shape(named, f"{where} must be an object")
        return False
    for key, word in named.value.items():
        field = fields.get(key)
        if field is None:
            findings.error(
                "AUTH_ON_DELETE_INVALID", f'{where} names "{key}", which is no field',
                word.at, list_known(fields),
            )
        elif word.value not in _DELETE_WORDS:
            findings.error(
                "AUTH_ON_DELETE_INVALID", f'{where}["{key}"] is no known word', word.at,
                f"use one of {', '.join(_DELETE_WORDS)}",
            )
        elif word.value == "null" and not _is_optional(field):
            findings.error(
                "AUTH_ON_DELETE_INVALID", f"{key} cannot become null: it is not optional", word.at,
                "make the field optional, or use delete or keep",
            )
    return True


def _is_optional(field: Node) -> bool:
    found = field.value.get("optional")
    return found is not None and found.value is True


def _warn_of_unnamed(
    root: Node, auth: Node | None, named: Node, fields: Mapping[str, Node], findings: Findings
) -> None:
    user = auth.value.get("user") if auth is not None else None
    entity = text_of(user, "entity") if user is not None else None
    users = entity.value if entity is not None else AuthConfig().user_entity
    for key, field in fields.items():
        kind = text_of(field, "type")
        if (
            kind is not None and kind.value == f"id({users})" and key not in named.value
            and "onDelete" not in field.value
        ):
            findings.warning(
                "AUTH_ON_DELETE_MISSING",
                f"auth.on_delete does not say what becomes of {key} when an account ends",
                named.at, f"add it with one of {', '.join(_DELETE_WORDS)}",
            )


def check_urls(root: Node, findings: Findings) -> None:
    """Report an entry of auth.urls that is no page."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    urls = auth.value.get("urls") if auth is not None and isinstance(auth.value, dict) else None
    if urls is None or not isinstance(urls.value, dict):
        return
    for key in urls.value:
        node = text_of(urls, key)
        if node is None:
            continue
        try:
            setting_values.url_or_path(node.value)
        except ValueError as ex:
            findings.error(
                "AUTH_URL_INVALID", f"auth.urls.{key} is no page: {ex}", node.at,
                'write for example "https://app.example.com/reset", or "/reset"',
            )


def check_org_roles(root: Node, findings: Findings) -> None:
    """Report a role of organisations that cannot be one, or that auth.totp names and nobody has."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    seen = set(_ROLES)
    for node in texts_of(auth, "org_roles") if auth is not None else ():
        if node.value in seen or _ROLE.fullmatch(node.value) is None:
            findings.error(
                "AUTH_ROLE_INVALID", f'"{node.value}" cannot be a role of organisations', node.at,
                "use a-z, 0-9, _ and -, up to 64 characters beginning with a letter, each once; "
                f"{', '.join(_ROLES)} are there already",
            )
        seen.add(node.value)
    totp = auth.value.get("totp") if auth is not None and isinstance(auth.value, dict) else None
    for node in texts_of(totp, "required_roles") if totp is not None else ():
        if node.value not in seen:
            findings.error(
                "AUTH_ROLE_INVALID",
                f'auth.totp.required_roles has "{node.value}", which is no role of organisations',
                node.at, list_known(seen),
            )
