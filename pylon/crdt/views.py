"""Views: the runs of a document's changes that were made while its row was hidden from a reader.

A `Run` begins at the version before the row left the reader's view, or with the document. It ends
before the change that brought the row into view, because text that remains then is no secret. The
reader's present rights decide, so a reader has the same runs, and the same blanks, each time.
Called by `workers.ws.documents`.
"""

from __future__ import annotations

import orjson

from pylon.auth_context import AuthContext
from pylon.crdt.redaction import Run
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import NO_RELATED, RelatedRows
from pylon.storage.records import StoredDocument


def hidden_runs(
    stored: StoredDocument, rules: EntityRules, auth: AuthContext,
    related: RelatedRows = NO_RELATED,
) -> tuple[Run, ...]:
    """Return the runs of a document that were hidden from a caller, in order.

    Args:
        related: the present rows that the read rule asks.
    """
    if auth.is_admin:
        return ()
    runs: list[Run] = []
    begin: bytes | None = None
    for view in stored.views:
        facts = orjson.loads(view.facts)
        if facts is None or not rules.may_read(auth, facts, related):
            begin = view.before if begin is None else begin
        elif begin is not None:
            runs.append(Run(begin, view.before, view.after))
            begin = None
    if begin is not None:
        runs.append(Run(begin, b"", b""))
    return tuple(runs)
