"""Typed request bodies: one msgspec type decodes a body, explains its faults and describes it.

A body is a frozen `msgspec.Struct`, in the `bodies` module of its family of resources or in
`pylon.query`. A `BodyType` binds the struct to its faults. orjson decodes the JSON text after the
scan of `pylon.json_text`; `msgspec.convert` then checks the decoded value, which costs 0.2 to
0.6 us. `pylon.openapi.bodies` derives the schema of the OpenAPI document from the same struct.

A struct ignores members that it does not declare, unless it forbids them, and accepts null only
where its type says so. A member of type `Any` is a value that no type describes: a row, a filter,
data of the app. The resource checks it, and `extra_json_schema` describes it.

Invariant: of several faults, the one that is declared first is reported, whatever the order of
the text. Called by the resources of `pylon.api` and by `pylon.query`.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from pylon.errors import InvalidData, InvalidJson, LimitExceeded, PylonError

T = TypeVar("T", bound=msgspec.Struct)

_NAME_CHARS: Final = 100
_NOUN_CHARS: Final = 200


class Refusal(msgspec.Struct, frozen=True):
    """The errors of a member that does not fit. Stands in the `Annotated` of the member.

    Args:
        missing: the error where the member is absent, null or an empty text.
        wrong: the error of a value of another type; None: `missing` too.
        expected: what the member accepts, in words: ``<name> must be <expected>``.
        text: the message; None: ``<name> is required``, or ``<name> must be <expected>``.
        hint: the remedy.
        names_field: give the error the members `field`, and `expected` where it is set.
    """

    missing: type[PylonError] = InvalidData
    wrong: type[PylonError] | None = None
    expected: str = ""
    text: str | None = None
    hint: str | None = None
    names_field: bool = False


_PLAIN: Final = Refusal()


class _Member(msgspec.Struct, frozen=True):
    """One member of a body. `max_chars`: the longest text; None: no limit."""

    name: str
    type: Any
    is_required: bool
    refusal: Refusal
    max_chars: int | None


class BodyType(Generic[T]):
    """A kind of request body. Built at import, immutable.

    Args:
        struct: the type.
        example: a body, as the hint of an error shows it.
        noun: the body in words.
        error: the error of a body that is no object, and of a member that is forbidden.
        not_object, unknown: the messages of these two errors, for an `error` other than
            InvalidJson; ``{noun}``, ``{example}``, ``{name}`` and ``{known}`` stand for the
            noun, the example, the name of the member, and the names of known members.
        is_lenient: treat a body that is no object as an empty object.
    """

    __slots__ = (
        "_error", "_example", "_is_lenient", "_is_strict", "_members", "_not_object_text",
        "_noun", "_unknown_text", "struct",
    )

    def __init__(
        self, struct: type[T], example: str, *, noun: str = "A body",
        error: type[PylonError] = InvalidJson, is_lenient: bool = False,
        not_object: str = "{noun} must be a JSON object, for example {example}",
        unknown: str = '{noun} has no "{name}" -- it may have: {known}',
    ) -> None:
        self.struct = struct
        self._example = example
        self._noun = noun
        self._error = error
        self._is_lenient = is_lenient
        self._not_object_text = not_object
        self._unknown_text = unknown
        self._is_strict = struct.__struct_config__.forbid_unknown_fields
        hints = get_type_hints(struct, include_extras=True)
        self._members = tuple(
            _read_member(field.encode_name, hints[field.name], field.required)
            for field in msgspec.structs.fields(struct)
        )

    @property
    def errors(self) -> frozenset[type[PylonError]]:
        """Return the errors that its members declare, for the OpenAPI document."""
        return frozenset(
            kind for member in self._members
            for kind in (member.refusal.missing, member.refusal.wrong) if kind is not None
        )

    def convert(self, body: object, noun: str | None = None) -> T:
        """Return the typed body of a decoded JSON value.

        Args:
            noun: the body in words, where one request has several of this type.

        Raises:
            PylonError: the error that the first member that does not fit declares.
        """
        try:
            return msgspec.convert(body, self.struct)
        except (msgspec.ValidationError, UnicodeEncodeError):
            return self._convert_members(body, self._noun if noun is None else noun)

    def _convert_members(self, body: object, noun: str) -> T:
        """Return the same, checked member by member.

        msgspec refuses a dict of which a key holds half of a surrogate pair, whether the struct
        declares the key or not; such a body passes here.
        """
        if not isinstance(body, dict):
            if not self._is_lenient:
                raise self._not_object(noun)
            body = {}
        if self._is_strict:
            self._check_names(body, noun)
        for member in self._members:
            if member.name not in body:
                if member.is_required:
                    raise self._missing(member)
                continue
            value = body[member.name]
            try:
                msgspec.convert(value, member.type)
            except msgspec.ValidationError:
                raise self._wrong(member, value) from None
        known = {member.name: body[member.name] for member in self._members if member.name in body}
        return msgspec.convert(known, self.struct)

    def _not_object(self, noun: str) -> PylonError:
        if self._error is InvalidJson:
            return InvalidJson("Invalid request body", hint=f"Send {self._example}")
        return self._error(self._not_object_text.format(noun=noun, example=self._example))

    def _check_names(self, body: dict[str, Any], noun: str) -> None:
        known = [member.name for member in self._members]
        for name in body:
            if name not in known:
                raise self._error(self._unknown_text.format(
                    noun=noun[:_NOUN_CHARS], name=name[:_NAME_CHARS], known=", ".join(known),
                ))

    def _missing(self, member: _Member) -> PylonError:
        refusal = member.refusal
        details = {"field": member.name} if refusal.names_field else {}
        if details and refusal.expected:
            details["expected"] = refusal.expected
        return refusal.missing(
            refusal.text or f"{member.name} is required", hint=refusal.hint, **details
        )

    def _wrong(self, member: _Member, value: object) -> PylonError:
        refusal = member.refusal
        is_absent = member.is_required and (value is None or value == "")
        if refusal.wrong is not None and not is_absent:
            text = refusal.text if refusal.text and not member.is_required else None
            return refusal.wrong(
                text or f"{member.name} must be {refusal.expected}", hint=refusal.hint
            )
        most = member.max_chars
        if isinstance(value, str) and most is not None and len(value) > most:
            return LimitExceeded(f"{member.name} has {len(value)} characters (limit {most})")
        return self._missing(member)


def _read_member(name: str, hint: Any, is_required: bool) -> _Member:
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        notes = get_args(hint)[1:]
    refusal = next((note for note in notes if isinstance(note, Refusal)), _PLAIN)
    chars = [
        note.max_length for note in notes
        if isinstance(note, msgspec.Meta) and note.max_length is not None
    ]
    return _Member(name, hint, is_required, refusal, chars[0] if chars else None)
