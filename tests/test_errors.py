"""pylon.errors: each error comes through the bus as itself, and no two share a code."""

from __future__ import annotations

import msgspec
import pytest

from pylon import errors
from pylon.errors.wire import WireError


def subclasses(cls: type[errors.PylonError]) -> list[type[errors.PylonError]]:
    return [cls, *(s for c in cls.__subclasses__() for s in subclasses(c))]


CODED = [cls for cls in subclasses(errors.PylonError)[1:] if "code" in cls.__dict__]


@pytest.mark.parametrize("cls", CODED)
def test_every_error_survives_the_bus(cls: type[errors.PylonError]) -> None:
    if cls.__init__ is not errors.PylonError.__init__:
        never_sent = (errors.StartRefused, errors.MigrationRefused)
        assert issubclass(cls, never_sent), "only errors of a start or a move never travel"
        return
    error = cls("what happened", hint="how to mend it", field="title")
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(WireError.from_error(error)))
    back = WireError(*wire).to_exception()
    assert type(back) is cls
    assert back.body() == error.body()
    assert 400 <= cls.status < 600


def test_two_errors_cannot_share_a_code() -> None:
    with pytest.raises(TypeError, match="NOT_FOUND"):
        type("Again", (errors.PylonError,), {"code": "NOT_FOUND", "__module__": "x"})
