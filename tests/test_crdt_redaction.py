"""Documents with hidden history: readers do not get it, and all copies merge."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from loro import ExportMode, LoroDoc, LoroMap, LoroText, VersionVector

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.crdt.document import redact_document
from pylon.crdt.redaction import Run
from pylon.crdt.sandbox import MergeRequest, _merged
from pylon.crdt.views import hidden_runs
from pylon.manifest.model import Entity, Field, FieldType, Policy
from pylon.policy.rules import compile_rules
from pylon.storage.ops import OpenDocument, PushDocument
from pylon.storage.records import StoredDocument
from pylon.values import EntityCodec
from tests.support import storage as kit
from tests.support import stores
from tests.support.documents import LoroClient
from tests.support.storage import BOB

pytestmark = pytest.mark.stores

WHOLE = [Run(b"", b"", b"")]
PAGE = Entity("Page", (
    Field("body", FieldType.RICHTEXT, optional=True, unique=False),
    Field("title", FieldType.STRING, optional=True, unique=False),
    Field("shared", FieldType.BOOL, optional=False, unique=False),
))
MANIFEST = replace(
    kit.MANIFEST, entities=(PAGE,),
    policies=(Policy("page", entity="Page", allow_read="data.shared", allow_write="true"),),
)
RULES = compile_rules(MANIFEST)


class Letters:
    """Characters that are used once."""

    def __init__(self) -> None:
        self.used = ""

    def take(self, count: int) -> str:
        new = "".join(chr(0x4E00 + len(self.used) + n) for n in range(count))
        self.used += new
        return new


def history_of(client: LoroDoc) -> str:
    return client.export_json_updates(VersionVector(), client.oplog_vv)


class Editors:
    """Three copies of one document, edited at random in all kinds of containers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.letters = Letters()
        self.docs = [LoroDoc() for _ in range(3)]
        self.docs[0].get_map("row").insert_container("body", LoroText())
        self.docs[0].commit()
        self.sync()

    def sync(self) -> None:
        for one in self.docs:
            for other in self.docs:
                if one is not other:
                    other.import_(one.export(ExportMode.Updates(other.oplog_vv)))

    def edit(self) -> None:
        chance, doc = self.random, self.random.choice(self.docs)
        kind = chance.choice(("text",) * 6 + ("map", "container", "list", "movable"))
        getattr(self, f"edit_{kind}")(doc)
        if chance.random() < 0.2:
            doc.commit()
        if chance.random() < 0.15:
            self.sync()

    def edit_text(self, doc: LoroDoc) -> None:
        found = doc.get_map("row").get("body")
        text: Any = found and found.container
        if not isinstance(text, LoroText):
            return
        size = text.len_unicode
        if self.random.random() < 0.45 and size > 3:
            at, count = self.random.randrange(size - 2), self.random.randrange(1, 3)
            for number in range(count):  # as the backspace key does, or the other way
                text.delete(at + count - 1 - number, 1)
        else:
            text.insert(self.random.randrange(size + 1), self.letters.take(3))

    def edit_map(self, doc: LoroDoc) -> None:
        row, key = doc.get_map("row"), self.random.choice("ab")
        if self.random.random() < 0.3:
            row.delete(key)
        else:
            row.insert(key, self.letters.take(2))

    def edit_container(self, doc: LoroDoc) -> None:
        row = doc.get_map("row")
        if self.random.random() < 0.3:
            row.delete("body")
        else:
            made: Any = row.insert_container("body", LoroText())
            made.insert(0, self.letters.take(4))

    def edit_list(self, doc: LoroDoc) -> None:
        found = doc.get_list("list")
        if self.random.random() < 0.4 and len(found):
            found.delete(self.random.randrange(len(found)), 1)
        elif self.random.random() < 0.5:
            found.insert(0, self.letters.take(2))
        else:
            made: Any = found.insert_container(0, LoroMap())
            made.insert("k", self.letters.take(2))

    def edit_movable(self, doc: LoroDoc) -> None:
        found = doc.get_movable_list("movable")
        kind = self.random.randrange(4)
        if kind == 0 or not len(found):
            found.insert(0, self.letters.take(2))
        elif kind == 1:
            found.set(self.random.randrange(len(found)), self.letters.take(2))
        elif kind == 2:
            found.delete(self.random.randrange(len(found)), 1)
        else:
            found.mov(0, len(found) - 1)


@pytest.mark.parametrize("seed", range(10))
def test_whole_history_loses_all_that_is_gone_and_shows_the_same(seed: int) -> None:
    editors = Editors(seed)
    for _ in range(120):
        editors.edit()
    editors.sync()
    doc = editors.docs[0]
    copy = LoroDoc()
    copy.import_(redact_document([doc.export(ExportMode.Snapshot())], WHOLE))
    assert not copy.is_shallow() and copy.oplog_vv == doc.oplog_vv
    assert copy.get_deep_value() == doc.get_deep_value()
    left = set(orjson.dumps(doc.get_deep_value()).decode())
    assert set(editors.letters.used) - left, "something is gone"
    assert set(history_of(copy)) & set(editors.letters.used) <= left


class Served:
    """A row that is shared and hidden again, its document, and a reader with one copy of it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.letters = Letters()
        self.told: set[str] = set()  # characters that the reader may have
        self.engine = kit.open_engine(path, manifest=MANIFEST)
        self.reader = stores.backend_at(path).open_reader(MANIFEST)
        self.codec = EntityCodec(PAGE)
        self.row_id = kit.row_id(1)
        row = self.codec.insert(
            {"body": self.letters.take(5), "shared": seed % 2 == 0}, self.row_id
        )
        self.write(
            kit.InsertRow("Page", self.row_id, row.values, row.row_json),
            OpenDocument("Page", self.row_id),
        )
        self.owner = LoroClient(*self.stored().parts)
        self.copy: LoroClient | None = None

    def close(self) -> None:
        self.reader.close()
        self.engine.close()

    def stored(self) -> StoredDocument:
        found = self.reader.document("Page", self.row_id)
        assert found is not None
        return found

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = orjson.loads(self.reader.get("Page", self.row_id) or b"{}")
        return row

    def write(self, *ops: Any) -> None:
        for reply in kit.apply(self.engine, *ops):
            assert reply.error is None, reply.error
        if self.row()["shared"]:
            self.told |= set(f"{self.row()['body']}{self.row()['title']}")

    def push(self, client: LoroClient, update: bytes) -> None:
        """As the route does: tried first, and what is known left out if need be."""
        update = _merged(MergeRequest(list(self.stored().parts), update)) or update
        self.write(PushDocument("Page", self.row_id, update, ADMIN))

    def subscribe(self) -> None:
        """The reader takes the document, if it may, into the copy that it has."""
        if not self.row()["shared"]:
            return
        runs = hidden_runs(self.stored(), RULES.for_entity("Page"), BOB)
        payload = redact_document(self.stored().parts, runs) if runs else None
        parts = self.stored().parts if payload is None else (payload,)
        fresh = LoroClient(*parts)
        if self.copy is None:
            self.copy = fresh
        else:
            for part in parts:
                self.copy.hear(part)
        row = {name: value for name, value in self.row().items() if value is not None}
        for copy in (self.copy, fresh):
            assert {"id": self.row_id, **copy.row()} == row
            assert set(history_of(copy.doc)) & set(self.letters.used) <= self.told

    def step(self) -> None:
        kind = self.random.randrange(7)
        if kind == 0:
            self.update(shared=not self.row()["shared"])
        elif kind == 1:
            self.update(shared=not self.row()["shared"], body=self.letters.take(3))
        elif kind == 2:
            self.update(body=self.letters.take(3), title=self.letters.take(2))
        elif kind == 3:
            self.update(body=None if self.random.random() < 0.3 else self.letters.take(2))
        elif kind == 4:
            self.edit(self.owner, whole=self.random.random() < 0.3)
        elif kind == 5 and self.copy is not None and self.row()["shared"]:
            self.edit(self.copy, whole=self.random.random() < 0.5)
        else:
            self.subscribe()

    def update(self, **patch: Any) -> None:
        self.write(kit.UpdateRow("Page", self.row_id, patch, ADMIN))

    def edit(self, client: LoroClient, *, whole: bool) -> None:
        if "body" not in client.row():
            return
        text = client.text("body")
        typed = self.letters.take(4)
        if client is self.copy or self.row()["shared"]:
            self.told |= set(typed)  # what is removed again at once may be told, too
        text.insert(self.random.randrange(text.len_unicode + 1), typed)
        text.delete(0, 1)
        update = client.update()
        self.push(client, client.everything() if whole else update)
        if client is self.owner:
            for part in self.stored().parts:
                client.hear(part)


@pytest.mark.parametrize("seed", range(10))
def test_reader_of_a_row_that_comes_and_goes_has_what_it_was_shown_and_no_more(
    tmp_path: Path, seed: int
) -> None:
    served = Served(tmp_path / "a.db", seed)
    for _ in range(60):
        served.step()
    if not served.row()["shared"]:
        served.update(shared=True)
    served.subscribe()  # asserts the copy's content and history
    assert served.copy is not None
    assert served.copy.row().get("body") == served.row()["body"]
    served.close()


def test_who_might_read_long_ago_is_forgotten_and_nobody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_VIEWS", 8)
    served = Served(tmp_path / "a.db", 0)
    for number in range(40):
        served.update(title=served.letters.take(1))
        served.update(shared=number % 2 == 1)
        assert len(served.stored().views) <= 8
    # The row's text was there all the time; of its titles only the newest may be told.
    served.told = {*str(served.row()["body"]), *served.letters.used[-8:]}
    served.subscribe()
    served.close()
