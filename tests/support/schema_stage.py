"""A PostgreSQL schema for the tests of migrations: starts on it, and rows without a writer."""

from __future__ import annotations

from typing import Any

import orjson

from pylon.clock import Clock, SystemClock
from pylon.manifest.model import Manifest
from pylon.query.words import text_fields
from pylon.schema.columns import fold_column, fold_fields
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Prepared
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.names import WORDS_COLUMN, quote
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.schema.manager import PostgresSchema
from pylon.storage.postgres.schema.results import TextRow, ask
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.word_vector import vector_of
from pylon.values import EntityCodec, fold_case


class SchemaStage:
    """One database, with a session that starts and another one that reads and writes rows."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.manager = PostgresSchema(url)
        self.session = self.open()

    def open(self) -> BlockingSession:
        """Open one more session."""
        return open_session(self.url, "test", "", SystemClock())

    def start(self, manifest: Manifest, clock: Clock | None = None) -> Prepared:
        """Bring the schema up, as a start of the server does."""
        session = self.open()
        try:
            return prepare_store(session, manifest, clock or SystemClock())
        finally:
            session.close()

    def add(self, manifest: Manifest, entity: str, row_id: str, **fields: Any) -> None:
        """Insert a row with its JSON, folded values and words, without a change event."""
        model = manifest.by_name[entity]
        encoded = EntityCodec(model).insert(fields, row_id)
        row = orjson.loads(encoded.row_json)
        values: dict[str, Any] = dict(
            zip(model.columns, (row_id, *encoded.values), strict=True)
        )
        values |= {"_json": encoded.row_json.decode(), "_seq": 1}
        values |= {fold_column(f): fold_case(row[f.name]) for f in fold_fields(model)}
        if text_fields(model):
            values[WORDS_COLUMN] = vector_of(model, row).decode()
        columns = ", ".join(map(quote, values))
        marks = ", ".join(
            f"${place}" + "::text::tsvector" * (name == WORDS_COLUMN)
            for place, name in enumerate(values, 1)
        )
        self.session.execute(
            f"INSERT INTO {quote(entity)} ({columns}) VALUES ({marks})", list(values.values())
        )

    def rows(self, entity: str) -> list[dict[str, Any]]:
        """Return the rows as their JSON has them, by id."""
        found = self.ask(f"SELECT _json FROM {quote(entity)} ORDER BY id")
        return [orjson.loads(str(text)) for (text,) in found]

    def left(self, manifest: Manifest) -> list[str]:
        """Return what a start would still do, or refuse."""
        plan = self.manager.plan(manifest, MigrationOptions())
        return [s.render() for s in (*plan.rewrites, *plan.steps)] + list(plan.refusals)

    def ask(self, statement: str, *parameters: Any) -> list[TextRow]:
        """Return the rows of a statement, as texts."""
        return ask(self.session, statement, parameters)

    def close(self) -> None:
        self.session.close()
