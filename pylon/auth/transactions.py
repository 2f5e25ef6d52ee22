"""Transactions of sign-in: submits steps that are carried out together, and raises their refusal.

Called by the resources of sessions and the flows of the identity workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pylon.storage.auth_ops import RecordOp
from pylon.storage.ops import DropSession, PutSession, RowOp, Transact, WriteReply

Step = RowOp | PutSession | DropSession | RecordOp


def carry_out(
    submit: Callable[[Transact], WriteReply], steps: Sequence[Step]
) -> list[WriteReply]:
    """Carry out all of the steps, or none. Return a reply of each.

    Raises:
        PylonError: of the step that was refused, for example `RecordConflict`.
    """
    reply = submit(Transact(list(steps)))
    results = reply.results or []
    for result in results:
        if result.error is not None:
            raise result.error.to_exception()
    return results
