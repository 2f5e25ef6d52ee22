"""Defaults: the values that the server gives to fields, when a row is inserted or updated.

`FieldDefaults` fills the fields that a new row lacks, before the codec checks it and before a
policy judges it. It refuses values of fixed fields from clients; admins may set them, so that an
import keeps the values of its rows. The writer calls `stamp` for each update, and sets the fields
with `onUpdate`. docs/manifest.md describes the keys `default`, `fixed` and `onUpdate`.

Called by `pylon.api.data.changes`, the import, `pylon.seed_file` and `pylon.storage.core`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from pylon.auth_context import ADMIN_USER_ID, AuthContext
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.errors import FieldFixed, MissingField, ReadonlyField
from pylon.ids import make_uuid
from pylon.manifest.model import Default, Entity, Field, FieldType

_US_NS: Final = 1_000
_AUTH_NAMES: Final = {"userId": "the caller's user id", "tenantId": "the caller's tenant"}


def instant_text(wall_ns: int) -> str:
    """Return a time in the stored notation of datetimes: UTC with microseconds."""
    seconds, rest_ns = divmod(wall_ns, NS_PER_S)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns // _US_NS:06d}Z"


class FieldDefaults:
    """The defaults of one entity, for one process. `has_stamps`: whether `stamp` sets a field."""

    __slots__ = ("_clock", "_constants", "_entity", "_fixed", "_made", "_random", "_read_only",
                 "_stamps", "has_stamps")

    def __init__(self, entity: Entity, clock: Clock, random: RandomSource) -> None:
        self._entity = entity
        self._clock = clock
        self._random = random
        self._constants: dict[str, Any] = {}
        self._made: list[tuple[Field, Default]] = []
        self._stamps: list[tuple[Field, Default]] = []
        for field in entity.fields:
            default = field.insert_default
            if default is not None and default.kind == "constant":
                self._constants[field.name] = orjson.loads(default.argument)
            elif default is not None:
                self._made.append((field, default))
            if field.on_update is not None:
                self._stamps.append((field, field.on_update))
        self._fixed = frozenset(f.name for f in entity.fields if f.is_set_by_server)
        self._read_only = entity.read_only
        self.has_stamps = bool(self._stamps)

    def fill(self, body: object, row_id: str, auth: AuthContext) -> object:
        """Return a new row's body with the defaults of the fields that it lacks.

        Args:
            body: as the client sent it; the codec refuses what is no object.

        Raises:
            FieldFixed: the caller is no admin and has sent a fixed field.
            ReadonlyField: see `check_read_only`.
            MissingField: a required field takes its value from the caller, who has none.
        """
        if not isinstance(body, dict):
            return body
        if self._read_only:
            self.check_read_only(body, auth)
        if self._fixed:
            self.check_fixed(body, auth)
        if not self._constants and not self._made:
            return body
        out = {**self._constants, **body}
        now_ns = self._clock.wall_ns()
        for field, default in self._made:
            if field.name not in out:
                value = self._value(field, default, row_id, auth, now_ns)
                if value is None and not field.optional:
                    raise MissingField(
                        f"{self._entity.name}.{field.name} is {_AUTH_NAMES[default.argument]}, "
                        "and the caller has none",
                        hint="Sign in, or send the field if it is not fixed",
                        entity=self._entity.name, field=field.name,
                    )
                out[field.name] = value
        return out

    def check_fixed(self, fields: Mapping[str, Any], auth: AuthContext) -> None:
        """Refuse values that only the server gives.

        Args:
            fields: those of a new row, or the changed ones.

        Raises:
            FieldFixed: the caller is no admin and has sent a fixed field.
        """
        if auth.is_admin or self._fixed.isdisjoint(fields):
            return
        name = next(name for name in fields if name in self._fixed)
        raise FieldFixed(
            f"{self._entity.name}.{name} is set by the server (\"fixed\" or \"onUpdate\" in the "
            "manifest)",
            hint=f"Send the change without {name}", entity=self._entity.name, field=name,
        )

    def check_read_only(self, fields: Mapping[str, Any], auth: AuthContext) -> None:
        """Refuse fields that only the server and administrators write. Every path of a client's
        write calls this: inserts (`fill`), updates, and updates of documents.

        Args:
            fields: those of a new row, or the changed ones, whatever their values.

        Raises:
            ReadonlyField: the caller is no admin and has named such a field.
        """
        if auth.is_admin or self._read_only.isdisjoint(fields):
            return
        name = next(name for name in fields if name in self._read_only)
        raise ReadonlyField(
            f"{self._entity.name}.{name} is read-only: only the server writes it",
            hint=f"Send the change without {name}", entity=self._entity.name, field=name,
        )

    def stamp(self, row_id: str, patch: Mapping[str, Any], auth: AuthContext) -> dict[str, Any]:
        """Return the patch with the values that the server sets at each update.

        A field that the patch names already keeps that value: only an admin can have sent it.
        """
        now_ns = self._clock.wall_ns()
        return {
            **{
                field.name: self._value(field, default, row_id, auth, now_ns)
                for field, default in self._stamps
            },
            **patch,
        }

    def _value(
        self, field: Field, default: Default, row_id: str, auth: AuthContext, now_ns: int
    ) -> Any:
        if default.kind == "now":
            text = instant_text(now_ns)
            return text if field.type is FieldType.DATETIME else text[:10]
        if default.kind == "uuid":
            return make_uuid(self._clock, self._random)
        if default.kind == "id":
            return row_id
        if default.argument == "tenantId":
            return auth.tenant_id
        # The admin token belongs to no user.
        return None if auth.user_id == ADMIN_USER_ID else auth.user_id
