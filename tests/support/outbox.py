"""The mails that an `ApiStage` would send: what its outbox holds."""

from __future__ import annotations

import re

from pylon.mail.message import Mail, decode
from pylon.mail.outbox import SEALED, TABLE
from pylon.storage.auth_ops import Condition, DropRecords
from tests.support.api import ApiStage


def take_mails(stage: ApiStage) -> list[Mail]:
    """Return the mails that wait, in the order of their rows, and delete them."""
    identity = stage.identity
    rows = identity.store.point(lambda reader: reader.records(TABLE, [], order=("created_at",)))
    for row in rows:
        identity.writer.submit(DropRecords(TABLE, [Condition("id", "=", row["id"])]))
    return [
        decode(identity.keys.open(TABLE, SEALED, str(row["id"]), str(row["sealed"])))
        for row in rows
    ]


def take_code(stage: ApiStage, to: str | None = None) -> str:
    """Return the six digits of the newest mail, which is to `to` if it is given."""
    mail = take_mails(stage)[-1]
    assert to is None or mail.to == to
    found = re.search(r"\b(\d{6})\b", mail.text)
    assert found is not None
    return found[1]


def take_token(stage: ApiStage, kind: str, to: str | None = None) -> str:
    """Return the token of the link in the newest mail of a kind."""
    mail = [mail for mail in take_mails(stage) if mail.kind == kind][-1]
    assert to is None or mail.to == to
    found = re.search(r"token=([0-9a-f]{64})", mail.text)
    assert found is not None
    return found[1]
