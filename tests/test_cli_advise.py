"""`pylonctl schema advise`: indexes that policies and the queries of a running server lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.cli import Ctl, decode_output
from tests.support.schema_stage import SchemaStage
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until
from tests.test_unindexed import APP, MANIFEST

pytestmark = pytest.mark.usefixtures("processes")

ROWS = 200_000  # so many and so long that a scan takes longer than a short read may


@pytest.fixture
def stage(postgres_url: str) -> Iterator[SchemaStage]:
    made = SchemaStage(postgres_url)
    made.start(APP)
    yield made
    made.close()


def indexes(stage: SchemaStage) -> set[str]:
    return {str(name) for (name,) in stage.ask(
        "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
    )}


def test_what_policies_lack_is_named_and_only_trigram_indexes_are_made(
    stage: SchemaStage, ctl: Ctl, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": stage.url}
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(MANIFEST))
    before = indexes(stage)
    done = ctl("schema", "advise", "--pattern", "Message.text", "--json", **env)
    assert done.returncode == 0, done.stderr
    body = decode_output(done)
    assert body["indexes"] == [{
        "entity": "Message", "index": {"name": "by_ownerId", "fields": ["ownerId"]},
        "why": "the read policy",
    }]
    (trigram,) = body["trigrams"]
    assert trigram["sql"][0] == "CREATE EXTENSION IF NOT EXISTS pg_trgm"
    assert "gin_trgm_ops" in trigram["sql"][1] and "CONCURRENTLY" in trigram["sql"][1]
    assert indexes(stage) == before, "it shows, and makes nothing"
    done = ctl("schema", "advise", "--pattern", "Message.text", "--create-trigrams", **env)
    assert done.returncode == 0 and "Message.text (--pattern): made" in done.stdout, done.stderr
    assert indexes(stage) == before | {"Message_text_trgm"}
    again = ctl("schema", "advise", "--pattern", "Message.text", "--json", **env)
    assert decode_output(again)["trigrams"] == []
    stage.start(APP)
    assert indexes(stage) == before | {"Message_text_trgm"}, "no start drops it"
    wrong = ctl("schema", "advise", "--pattern", "Message.sentAt", **env)
    assert wrong.returncode != 0 and "no text field" in wrong.stderr
    for pattern in ("word", "wo%rd", "Wörd_"):
        plan = ctl("explain-query", "Message", "--filter", json.dumps(
            {"text": {"$like": pattern}}
        ), **env)
        assert "Bitmap Index Scan using Message_text_trgm" in plan.stdout, plan.stdout


def test_queries_that_a_server_has_seen_are_named(tmp_path: Path, postgres_url: str) -> None:
    server = PylonServer(tmp_path, MANIFEST, {"DATABASE_URL": postgres_url})
    try:
        server.start()
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            conn.execute(
                'INSERT INTO "Message" (id, "sentAt", text, "ownerId", _json, _seq) '
                "SELECT lpad(n::text, 40, '0'), n, "
                "'message number ' || n || repeat(' and more', 80), 'u', '{}', 1 "
                "FROM generate_series(1, %s) AS n", (ROWS,)
            )
            conn.execute('ANALYZE "Message"')
        wanted: list[dict[str, Any]] = [
            {"text": {"$like": "absent"}}, {"text": "absent"}, {"text": {"$like": "missing"}},
        ]
        for body in wanted:
            status, rows, _ = server.request(
                "POST", "/api/query/Message", body, token=ADMIN_TOKEN
            )
            assert (status, rows) == (200, [])

        def advised() -> Any:
            done = server.ctl("schema", "advise", "--json")
            assert done.returncode == 0, done.stderr
            found = decode_output(done)
            seen = [(item["field"], item["why"]) for item in found["trigrams"]]
            return found if seen == [("text", "2 queries")] else None

        found = wait_until("the worker has told what it has seen", advised)
        assert {item["index"]["name"] for item in found["indexes"]} == {"by_ownerId", "by_text"}
        made = server.ctl("schema", "advise", "--create-trigrams")
        assert made.returncode == 0, made.stderr
        status, rows, _ = server.request(
            "POST", "/api/query/Message", {"text": {"$like": "number 777  "}}, token=ADMIN_TOKEN
        )
        assert (status, rows) == (200, [])
        status, rows, _ = server.request(
            "POST", "/api/query/Message", {"text": {"$like": "Number 77777"}}, token=ADMIN_TOKEN
        )
        assert (status, len(rows)) == (200, 1)
    finally:
        server.close()
