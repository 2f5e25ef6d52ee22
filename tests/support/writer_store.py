"""A store with a writer, in this process: for the tests of the supervisor's writer and flusher."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.bus.writer_port import LocalWriter
from pylon.clock import ManualClock, SystemClock, SystemRandom
from pylon.config import load
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.predicate import TRUE
from pylon.storage.ops import InsertRow, OpKey
from pylon.storage.public_rows import PublicRows
from pylon.values import EntityCodec
from supervisor.writer import Writer
from tests.support import stores
from tests.support.supervised import MANIFEST

IDS = RowIds(SystemClock(), SystemRandom())


class WriterStore:
    """A database with its engine, and a runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.runtime: Runtime = make_runtime_dir(
            load({"PYLON_RUNTIME_DIR": str(folder / "r")}).config)
        self.manifest: Manifest = parse_manifest(json.dumps(MANIFEST), "m.json")
        self.db_path = folder / "app.db"
        self.clock = ManualClock()
        self.backend = stores.backend_at(self.db_path)
        self.engine = self.backend.open_writer(
            self.manifest, compile_rules(self.manifest), self.clock)
        self.broken: list[BaseException] = []
        self.codec = EntityCodec(self.manifest.by_name["Todo"])

    def insert(self, title: str, op: OpKey | None = None) -> InsertRow:
        row_id = IDS.new()
        encoded = self.codec.insert({"title": title}, row_id)
        return InsertRow("Todo", row_id, encoded.values, encoded.row_json, op=op)

    def count(self) -> int:
        with closing(self.backend.open_reader(self.manifest)) as reader:
            return reader.count("Todo", TRUE)


def start_writer(store: WriterStore, engine: Any = None) -> tuple[Writer, LocalWriter]:
    """A running writer, and a client of it in this process."""
    writer = Writer(store.runtime, engine or store.engine, store.broken.append, PublicRows(()))
    writer.start()
    return writer, LocalWriter(store.runtime)


def start_thread(work: Callable[[], object]) -> threading.Thread:
    """Run `work` in a thread; the test joins it."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread
