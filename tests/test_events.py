"""pylon.storage.events: an event on the bus and on the wire."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pylon.bus import messages
from pylon.storage.events import ChangeBatch, ChangeEvent


@given(st.text(), st.text(min_size=1), st.sampled_from(["insert", "update", "delete"]))
def test_an_event_is_one_line_of_json_whatever_its_names(
    entity: str, row_id: str, kind: str
) -> None:
    row = json.dumps({"id": row_id}).encode()
    event = ChangeEvent(
        7, entity, row_id, kind, None if kind == "delete" else row, row, 1_700_000_000  # type: ignore[arg-type]
    )
    batch = messages.change_batch.decode(messages.encode(ChangeBatch(6, [event])))
    assert batch.events == [event]
    text = event.wire()
    assert b"\n" not in text
    shown = {} if kind == "delete" else {"data": {"id": row_id}}
    assert json.loads(text) == {
        "seq": 7, "entity": entity, "row_id": row_id, "kind": kind, **shown,
        "timestamp": "1700000000Z",
    }
