"""Types of fields that Python has no word for: ids of rows, files, documents of text, JSON values.

`Id[Room]` is the id of a row of Room. At run time it is a text, for type checkers it is no
`Id[User]`. For type checkers a file and a rich text are plain texts, so that literals fit.
Called by apps, through `pylon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

T = TypeVar("T")


class Id(str, Generic[T]):
    """The id of a row of the entity `T`."""

    __slots__ = ()


if TYPE_CHECKING:
    File: TypeAlias = str
    RichText: TypeAlias = str
    Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
else:
    class File(str):
        """The id of an uploaded file."""

        __slots__ = ()

    class RichText(str):
        """A text that several people may edit at once."""

        __slots__ = ()

    class Json:
        """Any JSON value."""
