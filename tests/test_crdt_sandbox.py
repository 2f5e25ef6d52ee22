"""Updates are merged on trial by a process that may die of them: pylon.crdt.sandbox, sandbox."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import gevent
import loro
import pytest

from pylon import limits, metrics
from pylon.errors import CrdtDecodeFailed, LimitExceeded, Unavailable
from tests.support.measured import total
from tests.support.wait import WAIT_S
from workers import merge_sandbox as module
from workers.merge_sandbox import MergeSandbox


@pytest.fixture
def sandbox(processes: None) -> Iterator[MergeSandbox]:
    made = MergeSandbox()
    yield made
    made.close()


def stored(text: str) -> tuple[bytes, loro.LoroDoc]:
    """A document with a text, as it is stored, and a client's copy of it."""
    doc = loro.LoroDoc()
    field = doc.get_map("row").insert_container("body", loro.LoroText())
    field.insert(0, text)
    doc.commit()
    return doc.export(loro.ExportMode.Snapshot()), doc


def edited(doc: loro.LoroDoc, text: str) -> bytes:
    before = doc.oplog_vv
    doc.get_map("row").get("body").container.insert(0, text)
    doc.commit()
    return doc.export(loro.ExportMode.Updates(before))


def replaced(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Another program in the sandbox's place."""
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", code))


def counted(result: str) -> float:
    return total(metrics.DOCUMENT_MERGE_CHECKS, result=result)


def test_one_process_tastes_one_update_after_the_other(sandbox: MergeSandbox) -> None:
    parts, doc = stored("hello")
    sandbox.check_merge((parts,), edited(doc, "a"), "user:ada")
    process = sandbox._all[-1].process
    for bad in (b"", b"\0", edited(doc, "b")[:-3]):
        with pytest.raises(CrdtDecodeFailed):
            sandbox.check_merge((parts,), bad, "user:ada")
    sandbox.check_merge((), parts, "user:ada")
    sandbox.check_merge((parts,), edited(doc, "c"), "user:ada")
    assert sandbox._all[-1].process is process
    assert process is not None
    assert process.poll() is None


def test_what_is_too_large_is_refused(sandbox: MergeSandbox) -> None:
    _, doc = stored("x" * (limits.DOCUMENT_BYTES + 1))
    with pytest.raises(LimitExceeded):
        update = doc.export(loro.ExportMode.Updates(loro.VersionVector()))
        sandbox.check_merge((), update, "user:ada")


READY = "import os, sys; os.write(1, b'\\0\\0\\0\\1\\xc0'); os.read(0, 1); "


@pytest.mark.parametrize("code", ["os.abort()", "os.write(1, bytes(3))", ""])
def test_an_update_that_ends_the_process_is_refused_and_the_next_one_is_not(
    sandbox: MergeSandbox, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    parts, doc = stored("hello")
    before = counted("died")
    with monkeypatch.context() as patched:
        replaced(patched, READY + code)
        with pytest.raises(CrdtDecodeFailed, match="cannot be merged"):
            sandbox.check_merge((parts,), edited(doc, "a"), "user:ada")
    assert counted("died") == before + 1
    sandbox.check_merge((parts,), edited(doc, "b"), "user:ada")


def test_an_update_may_take_so_much_of_the_processor(
    sandbox: MergeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ours = stored("hello")
    theirs = loro.LoroDoc()
    theirs.import_(begun)
    before_them = theirs.oplog_vv
    for doc in (ours, theirs):  # at the same time, all over the text: long to merge
        field = doc.get_map("row").get("body").container
        for number in range(20_000):
            field.insert(number * 7919 % (number + 5), "x")
        doc.commit()
    parts = (ours.export(loro.ExportMode.Snapshot()),)
    update = theirs.export(loro.ExportMode.Updates(before_them))
    sandbox.check_merge(parts, update, "user:ada")
    sandbox.close()
    monkeypatch.setattr(limits, "SANDBOX_CPU_S", 0.001)
    before = counted("died")
    with pytest.raises(CrdtDecodeFailed):
        sandbox.check_merge(parts, update, "user:ada")
    assert counted("died") == before + 1


@pytest.mark.parametrize("code", [
    "", "import time; time.sleep(60)", READY + "import time; time.sleep(60)",
])
def test_a_process_that_says_nothing_is_no_fault_of_the_update(
    sandbox: MergeSandbox, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(limits, "CALL_TIMEOUT_S", 0.3)
    replaced(monkeypatch, code)
    with pytest.raises(Unavailable, match="could not be tried"):
        sandbox.check_merge((), b"x" * 10, "user:ada")
    assert sandbox._all[-1].process is None


def test_a_program_that_cannot_be_started_is_no_fault_either(
    sandbox: MergeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMAND", ("/nowhere/python",))
    with pytest.raises(Unavailable):
        sandbox.check_merge((), b"x", "user:ada")


def test_a_process_that_died_between_two_updates_is_not_noticed(sandbox: MergeSandbox) -> None:
    parts, doc = stored("hello")
    sandbox.check_merge((parts,), edited(doc, "a"), "user:ada")
    assert sandbox._all[-1].process is not None
    sandbox._all[-1].process.kill()
    sandbox._all[-1].process.wait()
    sandbox.check_merge((parts,), edited(doc, "b"), "user:ada")


def test_who_waits_is_bounded(sandbox: MergeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "ADMISSION_WAITING_PER_CALLER", 1)
    replaced(monkeypatch, "import time; time.sleep(60)")
    asked = [gevent.spawn(sandbox.check_merge, (), b"x", "user:ada") for _ in range(3)]
    gevent.joinall(asked, timeout=WAIT_S)
    whys = [str(greenlet.exception) for greenlet in asked]
    assert [type(greenlet.exception) for greenlet in asked] == [Unavailable] * 3
    assert ["Too many requests" in why for why in whys] == [False, False, True]
