"""Names in PostgreSQL: identifiers of at most 63 bytes that stay distinct."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pylon.storage.postgres.names import NAME_BYTES, fitting_name


@given(st.text(max_size=120), st.text(max_size=120))
def test_names_fit_and_stay_distinct(left: str, right: str) -> None:
    for name in (left, right):
        fitting = fitting_name(name)
        assert len(fitting.encode()) <= NAME_BYTES
        assert fitting == name or len(name.encode()) > NAME_BYTES
    assert (fitting_name(left) == fitting_name(right)) == (left == right)


def test_a_long_name_keeps_its_beginning_whole() -> None:
    name = "Entity_" + "é" * 40
    assert fitting_name(name).startswith("Entity_éé")
    assert fitting_name(name)[-13] == "_"
    assert fitting_name("x" * NAME_BYTES) == "x" * NAME_BYTES
