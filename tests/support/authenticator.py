"""An authenticator app in software (RFC 6238), written from the standard: the judge of the server's
codes. Enrolment and sign-ins of the tests of second factors.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pylon.auth.transactions import Step
from pylon.auth_context import ANONYMOUS, AuthContext
from pylon.bus.identity import CallFacts
from pylon.clock import NS_PER_S
from pylon.errors import TotpRequired
from pylon.storage.auth_ops import PutRecord
from pylon.storage.ops import Transact
from tests.support.api import ApiStage
from workers.identity.identity import Call
from workers.identity.sign_in import finish_sign_in

PAGE = {"Origin": "http://localhost:3000"}


@dataclass(slots=True)
class Authenticator:
    """The secret of one account, as the app has read it from the QR code."""

    secret: str

    def code(self, now_s: float, drift: int = 0) -> str:
        """Return the code of a time, or of a step before or after it."""
        step = struct.pack(">Q", int(now_s) // 30 + drift)
        digest = hmac.new(base64.b32decode(self.secret), step, hashlib.sha1).digest()
        at = digest[-1] & 15
        number = struct.unpack(">I", digest[at:at + 4])[0] & 0x7FFFFFFF
        return f"{number % 1_000_000:06d}"


def now_s(stage: ApiStage) -> int:
    return stage.clock.wall_ns() // NS_PER_S


def enroll(stage: ApiStage, token: str) -> tuple[Authenticator, str]:
    """Enrol an authenticator for the user of a session. Return it, and the session's new token. A
    step passes, so that the next code counts."""
    app = Authenticator(stage.call("POST", "/api/auth/totp/enroll", {}, token).json["secret"])
    verified = stage.call(
        "POST", "/api/auth/totp/verify", {"code": app.code(now_s(stage))}, token
    )
    assert verified.status_code == 200, verified.text
    stage.clock.advance(60)
    return app, verified.json["token"]


def put_user(stage: ApiStage, user_id: str, *, locked_at: int | None = None) -> None:
    """Store the record of an account, as a registration does."""
    users = {
        "user_id": user_id, "created_at": 1, "tokens_valid_from": None, "locked_at": locked_at,
        "lock_reason": None, "last_sign_in_at": None,
    }
    stage.identity.writer.submit(Transact([PutRecord("users", users, replace=True)]))


def first_factor(
    stage: ApiStage, user_id: str, steps: Sequence[Step] = (), *, method: str = "password",
    cookies: Mapping[str, str] | None = None, code: str | None = None,
    extra: Mapping[str, Any] | None = None, auth: AuthContext = ANONYMOUS,
) -> dict[str, Any]:
    """Return the answer to a right first factor: that of a flow which has just checked it."""
    facts = CallFacts(
        auth, address="127.0.0.1", device="Firefox on Linux", cookies=dict(cookies or {})
    )
    answer = finish_sign_in(
        stage.identity, Call(b"", {}, facts), user_id, method, steps, extra=extra, code=code
    )
    body: dict[str, Any] = orjson.loads(answer.body)
    assert body["token"] == answer.session_token
    return body


def challenge_of(stage: ApiStage, user_id: str, **more: Any) -> str:
    """Return the challenge that a right first factor leads to."""
    try:
        first_factor(stage, user_id, **more)
    except TotpRequired as ex:
        return str(ex.details["challenge"])
    raise AssertionError("the account was not asked for a code")


def answer(
    stage: ApiStage, challenge: str, code: str, headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Any:
    """Send the answer to a challenge."""
    body = {"challenge": challenge, "code": code, **more}
    return stage.call("POST", "/api/auth/totp/challenge", body, headers=headers)


def who_is(stage: ApiStage, token: str) -> str | None:
    """Return the user id of a token."""
    found: str | None = stage.call("GET", "/api/auth/me", token=token).json["user_id"]
    return found
