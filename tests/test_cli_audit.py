"""`pylonctl audit`: a record as a line."""

from __future__ import annotations

from typing import Any

import pytest

from pylon.cli.audit import audit_line

RECORD: dict[str, Any] = {
    "id": "aud_1", "created_at": 1_700_000_000, "action": "sign_in", "user_id": "u1",
    "actor_id": "u1", "tenant_id": None, "ip": "198.51.100.7", "user_agent": "Chrome on macOS",
    "success": True, "reason": None, "metadata": None,
}


@pytest.mark.parametrize(("changes", "line"), [
    ({}, "2023-11-14 22:13:20  sign_in  u1  198.51.100.7  Chrome on macOS"),
    (
        {"success": False, "reason": "INVALID_CREDENTIALS", "ip": None, "user_agent": None},
        "2023-11-14 22:13:20  sign_in  u1  refused: INVALID_CREDENTIALS",
    ),
    (
        {"actor_id": "__admin__", "reason": "purge", "ip": None, "user_agent": None,
         "user_id": None},
        "2023-11-14 22:13:20  sign_in  -  by __admin__  purge",
    ),
])
def test_records_are_lines(changes: dict[str, Any], line: str) -> None:
    assert audit_line({**RECORD, **changes}) == line
