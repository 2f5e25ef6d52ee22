"""Cache of documents without their hidden history (`pylon.crdt.redaction`).

The merge sandbox prepares them. Callers that ask for one at the same time wait for one preparation.
The key has a hash of the stored parts. An update number alone would not do: a new row may get the
id of a deleted one.

Bound: `limits.REDACTED_DOCUMENTS_BYTES`; the least recently used goes first. Called by
`document_reads`.
"""

from __future__ import annotations

from collections import OrderedDict

from gevent.event import AsyncResult

from pylon import limits
from pylon.crdt.redaction import Run
from pylon.errors import PylonError, Unavailable
from pylon.storage.records import StoredDocument
from workers.merge_sandbox import MergeSandbox

_Version = tuple[tuple[str, str], int]  # with a hash of the stored parts and the hidden runs


class RedactionCache:
    """See the module."""

    __slots__ = ("_payloads", "_pending", "_sandbox", "_size_bytes")

    def __init__(self, sandbox: MergeSandbox) -> None:
        self._sandbox = sandbox
        self._payloads: OrderedDict[_Version, bytes] = OrderedDict()
        self._size_bytes = 0
        self._pending: dict[_Version, AsyncResult[bytes]] = {}

    def find(
        self, key: tuple[str, str], stored: StoredDocument, runs: tuple[Run, ...], caller: str
    ) -> bytes:
        """Return the redacted document, prepared once for all callers at the same time.

        Raises:
            CrdtDecodeFailed, Unavailable: see `MergeSandbox.redact`.
        """
        version = (key, hash((stored.parts, runs)))
        payload = self._payloads.get(version)
        if payload is not None:
            self._payloads.move_to_end(version)
            return payload
        pending = self._pending.get(version)
        if pending is not None:
            found: bytes = pending.get()
            return found
        pending = self._pending[version] = AsyncResult()
        try:
            payload = self._sandbox.redact(stored, runs, caller)
        except BaseException as ex:
            pending.set_exception(ex if isinstance(ex, PylonError) else Unavailable("Try again"))
            raise
        finally:
            del self._pending[version]
        pending.set(payload)
        self._keep(version, payload)
        return payload

    def _keep(self, version: _Version, payload: bytes) -> None:
        self._payloads[version] = payload
        self._size_bytes += len(payload)
        while self._size_bytes > limits.REDACTED_DOCUMENTS_BYTES:
            self._size_bytes -= len(self._payloads.popitem(last=False)[1])
