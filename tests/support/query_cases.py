"""The cases of docs/query-semantics.md: rows, a question, and the answer that every store gives.

`tests/corpora/query_semantics.json` has them. A case has the types of the fields ``v`` and ``w``,
the values of its rows, and one question: `filter` (a condition on ``v``), `where` (a whole
filter; beside a `policy` the filter of the policy's caller), `policy` (``*`` in an ``exists(...)``
is the entity of the case), `search`, `order` (of ``v``, or an object; with `after` or `before`, the
number of a row), `lookup` (a text), `aggregate` or `facets` (how many values).
`ids` are the numbers of the rows, from 1, `answer` the figures; `error` is the code of a refusal.

All rows of all cases are in one store: an entity for each pair of types, and a field ``part``
with the number of the case. Used by `tests.test_query_semantics` and by suites of other stores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy, Search
from pylon.policy.entity_rules import EntityRules
from pylon.policy.rules import compile_rules
from pylon.query.aggregate import Aggregate, parse_aggregate
from pylon.query.conditions import and_, equal, guarded
from pylon.query.parse import parse_where
from pylon.query.predicate import Predicate
from pylon.query.rows import Query, parse_filter
from pylon.storage.interface import Reader
from pylon.storage.ops import InsertRow
from pylon.values import EntityCodec

CORPUS: Final = Path(__file__).parent.parent / "corpora" / "query_semantics.json"
CALLER: Final = AuthContext(user_id="u1", roles=("lead",))
ENUM_VALUES: Final = ("open", "done", "Late")
_MANY: Final = 10_000


@dataclass(frozen=True)
class Case:
    """One line of the corpus; `number` is its place."""

    number: int
    rule: str
    entity: Entity
    source: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The bodies of its rows."""
        pairs = [row if isinstance(row, list) else [row] for row in self.source["rows"]]
        return [
            {"part": self.number, **dict(zip(("v", "w"), pair, strict=False))} for pair in pairs
        ]

    @property
    def part(self) -> Predicate:
        """The rows of this case, among those of all cases."""
        return equal("part", self.number)

    @property
    def rules(self) -> EntityRules:
        """The rules of an entity that the case's policy protects."""
        rule = self.source["policy"]
        if "exists" in rule:
            rule = rule.replace("*", self.entity.name)
        policy = Policy("p", self.entity.name, allow_read=rule)
        manifest = Manifest("cases", "1", (self.entity,), policies=(policy,))
        return compile_rules(manifest).for_entity(self.entity.name)

    @property
    def condition(self) -> Predicate:
        """The tree of its question, without `part`.

        Raises:
            PylonError: the case has an `error`.
        """
        body = self.source.get("where", {})
        if "policy" in self.source:
            allowed = self.rules.readable_by(CALLER)
            return guarded(allowed, parse_where(self.entity, body)) if body else allowed
        if "filter" in self.source:
            body = {"v": self.source["filter"]}
        if "search" in self.source:
            body = {"$search": self.source["search"]}
        return parse_where(self.entity, body)

    @property
    def query(self) -> Query:
        """The query of a case with an order."""
        order = self.source["order"]
        order = order if isinstance(order, dict) else {"v": order}
        body = {"$order": order, "part": self.number}
        body |= {f"${key}": self.source[key] for key in ("limit", "offset") if key in self.source}
        for key in ("after", "before"):
            if key in self.source:
                number = self.source[key]
                row = self.rows[number - 1] | {"id": f"{self.number * _MANY + number:040x}"}
                body[f"${key}"] = {name: row[name] for name in (*order, "id")}
        return parse_filter(self.entity, body, _MANY)

    @property
    def aggregate(self) -> Aggregate:
        """The aggregate of a case that has one."""
        return parse_aggregate(self.entity, self.source["aggregate"], self.part)

    def ids_of(self, rows: list[bytes]) -> list[int]:
        """The numbers of rows in their JSON."""
        return [int(orjson.loads(row)["id"], 16) % _MANY for row in rows]


def load_cases() -> list[Case]:
    """All cases of the corpus."""
    lines = json.loads(CORPUS.read_text())
    return [Case(n, line["rule"], _entity_of(line), line) for n, line in enumerate(lines, 1)]


def manifest_of(cases: list[Case]) -> Manifest:
    """An app with the entities of the cases."""
    by_name = {case.entity.name: case.entity for case in cases}
    return Manifest("cases", "1", tuple(by_name.values()))


def inserts_of(case: Case) -> list[InsertRow]:
    """The writes that store the rows of a case."""
    codec = EntityCodec(case.entity)
    inserts = []
    for number, body in enumerate(case.rows, 1):
        row_id = f"{case.number * _MANY + number:040x}"
        encoded = codec.insert(body, row_id)
        inserts.append(InsertRow(case.entity.name, row_id, encoded.values, encoded.row_json))
    return inserts


def ids_selected(reader: Reader, case: Case) -> list[int]:
    """The rows that a store selects for a case with `ids`, in the order of its answer."""
    query = case.query if "order" in case.source else Query(
        and_(case.part, case.condition), _MANY
    )
    return case.ids_of(reader.rows(case.entity.name, query))


def id_found(reader: Reader, case: Case) -> list[int]:
    """The row that a store finds for a case with `lookup`, if it finds one. The rows of other
    cases are hidden."""
    row = reader.lookup(case.entity.name, "v", case.source["lookup"], case.part)
    return [] if row is None else case.ids_of([row])


def rows_stored(reader: Reader, case: Case) -> list[dict[str, Any]]:
    """The decoded rows of a case, by id."""
    rows = reader.rows(case.entity.name, Query(case.part, _MANY))
    return [orjson.loads(row) for row in rows]


def _field(name: str, kind: str) -> Field:
    values = ENUM_VALUES if kind == "enum" else ()
    return Field(name, FieldType(kind), True, False, values=values)


def _entity_of(line: dict[str, Any]) -> Entity:
    first, second = line.get("types") or (line["type"], "string")
    is_indexed = line.get("indexed", False)
    is_asked = "exists" in line.get("policy", "")
    name = f"{first}_{second}{'_indexed' * is_indexed}{'_asked' * is_asked}".title()
    fields = [
        Field("part", FieldType.INT, False, False),
        _field("v", first),
        _field("w", second),
    ]
    orders = (("part", "v", "w"), ("v", "part", "w"), ("part", "w", "v"), ("w", "v", "part"))
    indexes = tuple(
        Index(f"{name}_{'_'.join(order)}", order, False) for order in orders if is_asked
    )
    search = Search(("v",), (), ()) if is_indexed else None
    return Entity(name, tuple(fields), indexes, search=search)
