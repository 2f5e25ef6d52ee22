"""Any sequence of operations on records, alone and in transactions, against a model.

The model is a dict of tables with records by key. A transaction works on a copy, which replaces the
model only if every step was carried out. After each batch the stored records are those of the
model, on a reader of its own connection; a restart changes nothing.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pylon.storage.auth_ops import (
    CheckRecords,
    Condition,
    DropRecords,
    EndSessions,
    PutRecord,
    RateTake,
    SetRecords,
    TakeRates,
)
from pylon.storage.auth_tables import TABLE_BY_NAME
from pylon.storage.ops import DropSession, PutSession, Transact, TransactOp, WriteReply
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.examples import count_examples
from tests.support.storage import row_id, task

pytestmark = pytest.mark.stores

Record = dict[str, Any]
Tables = dict[str, dict[tuple[Any, ...], Record]]

NAMES = ("identities", "trusted_devices", "tokens")
NUMBERS = st.integers(0, 3)
TEXTS = st.sampled_from(["a", "b", "c"])
TABLES = (*NAMES, "sessions", "limits", "rows")
CONDITIONS = {
    "identities": ("subject", "user_id", "verified_at"),
    "trusted_devices": ("user_id", "created_at"),
    "tokens": ("user_id", "attempts", "used_at"),
    "sessions": ("user_id", "created_at"),
}
SETTABLE = {
    "identities": ("user_id", "verified_at"), "trusted_devices": ("created_at",),
    "tokens": ("used_at", "user_id"), "sessions": ("auth_time",),
}
ADDABLE = {"tokens": ("attempts", "used_at"), "trusted_devices": ("expires_at",)}


class RefusedError(Exception):
    """The model refuses the step. `code`: of the error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def value_of(draw: st.DrawFn, table: str, name: str) -> Any:
    column = TABLE_BY_NAME[table].by_column[name]
    values: st.SearchStrategy[Any] = TEXTS if column.kind == "text" else NUMBERS
    return draw(st.none() | values if column.optional else values)


@st.composite
def conditions(draw: st.DrawFn, table: str) -> list[Condition]:
    found = []
    for name in draw(st.lists(st.sampled_from(CONDITIONS[table]), max_size=2)):
        relation = draw(st.sampled_from(["=", "=", "!=", "<", ">=", "null", "not null"]))
        value = value_of(draw, table, name)
        if value is None:
            relation = draw(st.sampled_from(["null", "not null"]))
        found.append(Condition(name, relation, None if "null" in relation else value))
    return found


@st.composite
def steps(draw: st.DrawFn) -> TransactOp:
    kind = draw(st.sampled_from([
        "put", "put", "replace", "set", "drop", "check", "session", "end", "drop_session", "take",
        "row",
    ]))
    if kind == "session":
        user = draw(TEXTS)
        return PutSession(f"s{draw(NUMBERS)}", user, draw(st.booleans()), draw(NUMBERS), 0, "x")
    if kind == "drop_session":
        return DropSession(f"s{draw(NUMBERS)}")
    if kind == "end":
        keep = draw(st.lists(NUMBERS.map(lambda n: f"s{n}"), max_size=1))
        return EndSessions(draw(conditions("sessions")), keep)
    if kind == "take":
        takes = draw(st.lists(st.builds(
            RateTake, TEXTS, st.just(10), st.sampled_from([10, 30]), st.just("rate")
        ), min_size=1, max_size=3))
        return TakeRates(takes, draw(st.integers(1, 60)))
    if kind == "row":
        return task(draw(NUMBERS), client_id=True)
    table = draw(st.sampled_from(NAMES if kind in ("put", "replace", "drop") else [*CONDITIONS]))
    if kind in ("put", "replace"):
        values = {c.name: value_of(draw, table, c.name) for c in TABLE_BY_NAME[table].columns}
        return PutRecord(table, values, kind == "replace")
    where = draw(conditions(table))
    if kind == "check":
        return CheckRecords(table, where, draw(NUMBERS))
    expected = draw(st.none() | st.integers(1, 2))
    if kind == "drop":
        return DropRecords(table, where, expected)
    if table in ADDABLE and draw(st.booleans()):
        name = draw(st.sampled_from(ADDABLE[table]))
        return SetRecords(table, where, {}, expected, {name: draw(st.integers(-2, 2))})
    name = draw(st.sampled_from(SETTABLE[table]))
    return SetRecords(table, where, {name: value_of(draw, table, name)}, expected)


def is_selected(record: Record, where: list[Condition]) -> bool:
    for condition in where:
        value, given = record[condition.column], condition.value
        if condition.relation == "null":
            holds = value is None
        elif value is None:
            holds = False
        else:
            holds = {
                "not null": lambda a, b: True, "=": lambda a, b: a == b,
                "!=": lambda a, b: a != b, "<": lambda a, b: a < b, ">=": lambda a, b: a >= b,
            }[condition.relation](value, given)
        if not holds:
            return False
    return True


def select(tables: Tables, op: Any, table: str = "") -> list[tuple[Any, ...]]:
    """Return the keys that an operation selects."""
    records = tables[table or op.table]
    found = [key for key, record in records.items() if is_selected(record, op.where)]
    expected = getattr(op, "expected", None)
    if expected is not None and len(found) != expected:
        raise RefusedError("RECORD_CONFLICT")
    return found


def put(tables: Tables, op: PutRecord) -> int:
    declared, records = TABLE_BY_NAME[op.table], tables[op.table]
    key = tuple(op.values[name] for name in declared.key)
    taken = key in records and not op.replace
    for names in declared.unique:
        taken = taken or any(
            other != key and all(record[name] == op.values[name] for name in names)
            for other, record in records.items()
        )
    if taken:
        raise RefusedError("RECORD_EXISTS")
    records[key] = dict(op.values)
    return 1


def take_rates(tables: Tables, op: TakeRates) -> int:
    tats = {key: record["tat"] for key, record in tables["limits"].items()}
    is_refused = False
    for take in op.takes:
        before = min(max(tats.get((take.key,), 0), op.now_ns), op.now_ns + take.burst_ns)
        if before + take.interval_ns - op.now_ns > take.burst_ns:
            is_refused = True
        else:
            tats[take.key,] = before + take.interval_ns
    if is_refused:
        raise RefusedError("RATE_LIMITED")
    tables["limits"] = {key: {"key": key[0], "tat": tat} for key, tat in tats.items()}
    return len(op.takes)


def put_session(tables: Tables, op: PutSession) -> int:
    columns = TABLE_BY_NAME["sessions"].by_column
    tables["sessions"][op.session_id,] = {
        **dict.fromkeys(columns), "session_id": op.session_id, "user_id": op.user_id,
        "is_guest": int(op.is_guest), "created_at": op.created_at_s, "expires_at": op.expires_at_s,
        "device": op.device, "family": op.session_id, "auth_time": op.created_at_s,
        "methods": op.methods, "last_seen_at": op.created_at_s, "token_hint": op.token_hint,
    }
    return 1


def carry_out(tables: Tables, op: Any) -> tuple[int, list[str] | None]:
    """Carry out a step. Return its count, and the ids of ended sessions.

    Raises:
        RefusedError
    """
    match op:
        case PutRecord():
            return put(tables, op), None
        case SetRecords():
            found = select(tables, op)
            for key in found:
                record = tables[op.table][key]
                record.update(op.values)
                for name, number in op.add.items():
                    record[name] = (record[name] or 0) + number
            return len(found), None
        case DropRecords():
            found = select(tables, op)
            for key in found:
                del tables[op.table][key]
            return len(found), None
        case CheckRecords():
            return len(select(tables, op)), None
        case EndSessions():
            kept = {(session_id,) for session_id in op.keep}
            found = [key for key in select(tables, op, "sessions") if key not in kept]
            for key in found:
                del tables["sessions"][key]
            return len(found), [key[0] for key in found]
        case TakeRates():
            return take_rates(tables, op), None
        case PutSession():
            return put_session(tables, op), None
        case DropSession():
            return int(tables["sessions"].pop((op.session_id,), None) is not None), None
        case _:
            if (op.row_id,) in tables["rows"]:
                raise RefusedError("OPTIMISTIC_ID_CONFLICT")
            tables["rows"][op.row_id,] = {}
            return 1, None


class Machine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.stage = StoreStage(open_backend(Path(self._folder.name)))
        self.tables: Tables = {name: {} for name in TABLES}

    def teardown(self) -> None:
        self.stage.close()
        self._folder.cleanup()

    @rule(batch=st.lists(st.lists(steps(), min_size=1, max_size=6), min_size=1, max_size=3))
    def commit(self, batch: list[list[TransactOp]]) -> None:
        """Commit groups of steps as one batch; a group of several is a transaction."""
        replies = self.stage.apply(*(
            group[0] if len(group) == 1 else Transact(group) for group in batch
        ))
        for group, reply in zip(batch, replies, strict=True):
            results = [reply] if len(group) == 1 else reply.results
            assert results is not None
            tried = copy.deepcopy(self.tables)
            for place, step in enumerate(group):
                if not self._is_carried_out(tried, step, results[place]):
                    assert len(results) == place + 1, "it goes on behind a refusal"
                    break
            else:
                self.tables = tried

    def _is_carried_out(self, tables: Tables, step: TransactOp, result: WriteReply) -> bool:
        """Check the reply of one step."""
        code = result.error.code if result.error else None
        try:
            count, ended = carry_out(tables, step)
        except RefusedError as refused:
            assert code == refused.code, step
            return False
        assert code is None and result.count == count, (step, result)
        if ended is not None:
            assert sorted(orjson.loads(result.row_id)) == sorted(ended)
        return True

    @rule()
    def restart(self) -> None:
        self.stage.restart()

    @invariant()
    def stored_records_are_those_of_the_model(self) -> None:
        reader = self.stage.reader
        for name in TABLES[:-1]:
            expected = [record for _, record in sorted(self.tables[name].items())]
            assert reader.records(name, [], limit=1_000) == expected, name
        rows = [row["id"] for row in self.stage.rows("Task")]
        assert rows == sorted(key[0] for key in self.tables["rows"])


def test_any_operations_on_records_leave_what_the_model_has() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(
            max_examples=count_examples(20), stateful_step_count=15, deadline=None
        ),
    )


def test_the_rows_of_the_model_have_the_ids_of_the_store() -> None:
    assert task(1).row_id == row_id(1)
