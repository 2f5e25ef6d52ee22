"""Sort keys are ordered as SQLite orders rows, and can be decoded."""

from __future__ import annotations

from typing import Any

import apsw
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.sort_keys import SortKeys
from pylon.values.decimals import decimal_key
from tests.support.examples import count_examples

TYPES = {
    "text": FieldType.STRING, "whole": FieldType.INT, "real": FieldType.FLOAT,
    "flag": FieldType.BOOL,
}
ENTITY = Entity(
    "E", tuple(Field(name, kind, optional=True, unique=False) for name, kind in TYPES.items())
)
COLUMNS = ("id", *TYPES)
TEXT = st.text(st.sampled_from("\0\1aAä\uffff\U0001f600"), max_size=3)
INTS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [0, 1, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, 2**63 - 2]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-0.0, 0.0, 2.0**53])
ROWS = st.lists(
    st.fixed_dictionaries({
        "id": TEXT.filter(lambda text: "\0" not in text),
        "text": TEXT | st.none(), "whole": INTS | st.none(), "real": FLOATS | st.none(),
        "flag": st.booleans() | st.none(),
    }),
    max_size=12, unique_by=lambda row: row["id"],
)
ORDERS = st.lists(
    st.tuples(st.sampled_from(list(TYPES)), st.booleans()), max_size=3,
    unique_by=lambda pair: pair[0],
)


@settings(max_examples=count_examples(300))
@given(rows=ROWS, order=ORDERS, id_is_descending=st.booleans())
def test_keys_are_ordered_as_the_store_orders_rows(
    rows: list[dict[str, Any]], order: list[tuple[str, bool]], id_is_descending: bool
) -> None:
    whole = (*order, ("id", id_is_descending))
    keys = SortKeys(ENTITY, whole)
    conn = apsw.Connection(":memory:")
    conn.execute("CREATE TABLE e (id TEXT, text TEXT, whole INTEGER, real REAL, flag INTEGER)")
    for row in rows:
        conn.execute("INSERT INTO e VALUES (?, ?, ?, ?, ?)", [row[c] for c in COLUMNS])
    terms = ", ".join(f'"{name}" {"DESC" if desc else "ASC"}' for name, desc in whole)
    wanted = [found[0] for found in conn.execute(f"SELECT id FROM e ORDER BY {terms}")]
    made = sorted(map(keys.key_of, rows))
    assert [keys.id_of(key) for key in made] == wanted


@settings(max_examples=count_examples(300))
@given(rows=ROWS, order=ORDERS, id_is_descending=st.booleans())
def test_a_key_gives_the_values_of_its_row(
    rows: list[dict[str, Any]], order: list[tuple[str, bool]], id_is_descending: bool
) -> None:
    keys = SortKeys(ENTITY, (*order, ("id", id_is_descending)))
    for row in rows:
        values = keys.values_of(keys.key_of(row))
        assert values == (*(row[name] for name, _ in order), row["id"])
        assert [type(value) for value in values[:-1]] == [type(row[name]) for name, _ in order]


def test_texts_among_numbers_come_behind_them() -> None:
    keys = SortKeys(ENTITY, (("whole", False), ("id", False)))
    values = [None, -1, 2**70, "a", ["b"]]
    made = [keys.key_of({"id": f"{n}", "whole": value}) for n, value in enumerate(values)]
    assert made == sorted(made)


def test_notations_of_one_instant_have_one_key() -> None:
    """Rows that an earlier version wrote have other notations."""
    entity = Entity("D", (Field("at", FieldType.DATETIME, optional=True, unique=False),))
    keys = SortKeys(entity, (("at", True), ("id", False)))
    texts = ["2026-01-01T00:00:00.000000Z", "2026-01-01T01:00:00+01:00", "2026-01-01"]
    assert len({keys.key_of({"id": "x", "at": text}) for text in texts}) == 1
    assert keys.values_of(keys.key_of({"id": "x", "at": texts[1]})) == (texts[0], "x")


def test_decimals_have_keys_in_the_order_of_their_values() -> None:
    entity = Entity("D", (Field("price", FieldType.DECIMAL, optional=True, unique=False),))
    keys = SortKeys(entity, (("price", False), ("id", False)))
    texts = [None, "-10", "-9.5", "-0.01", "0", "0.5", "9", "10", "10.25", "100"]
    made = [keys.key_of({"id": "x", "price": text}) for text in texts]
    assert made == sorted(made) and len(set(made)) == len(made)
    assert keys.key_of({"id": "x", "price": "9.50"}) == keys.key_of({"id": "x", "price": "9.5"})
    assert keys.values_of(keys.key_of({"id": "x", "price": "9.50"}))[0] == decimal_key("9.5")
