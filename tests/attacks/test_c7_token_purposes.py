"""Attack: a token or code of one purpose at the routes of the others.

Each is refused there with 401, and still works where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails, take_token

pytestmark = pytest.mark.stores
EMAIL, NEW = "ann@example.com", "ann@new.example.com"
SignIn = Callable[[], str]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def sign_in(stage: ApiStage) -> str:
    stage.call("POST", "/api/auth/magic/send", {"email": EMAIL})
    body = {"email": EMAIL, "code": take_code(stage)}
    token: str = stage.call("POST", "/api/auth/magic/verify", body).json["token"]
    return token


def make(stage: ApiStage, purpose: str) -> str:
    """Return a new secret of a purpose."""
    session = sign_in(stage)
    stage.clock.advance(1)
    if purpose == "code":
        stage.call("POST", "/api/auth/magic/send", {"email": EMAIL})
        return take_code(stage)
    if purpose == "verification":
        stage.call("POST", "/api/auth/email/send-verification", token=session)
        return take_code(stage)
    if purpose == "link":
        stage.call("POST", "/api/auth/magic-link/send", {"email": EMAIL})
        return take_token(stage, "MAGIC_LINK")
    stage.call("POST", "/api/auth/email/change/request", {"newEmail": NEW}, session)
    link = take_token(stage, "EMAIL_CHANGE")
    if purpose == "change":
        return link
    stage.call("POST", "/api/auth/email/change/confirm", {"token": link})
    return take_token(stage, "EMAIL_CHANGED")


def use(stage: ApiStage, purpose: str, secret: str, session: str) -> Any:
    """Use a secret as if it were of a purpose."""
    if purpose == "code":
        body = {"email": EMAIL, "code": secret}
        return stage.call("POST", "/api/auth/magic/verify", body)
    if purpose == "verification":
        return stage.call("POST", "/api/auth/email/verify", {"code": secret}, session)
    paths = {
        "link": "/api/auth/magic-link/verify", "change": "/api/auth/email/change/confirm",
        "revert": "/api/auth/email/change/revert",
    }
    return stage.call("POST", paths[purpose], {"token": secret})


PURPOSES = ("code", "verification", "link", "change", "revert")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_secret_works_for_its_own_purpose_alone(stage: ApiStage, purpose: str) -> None:
    secret = make(stage, purpose)
    session = "" if purpose == "revert" else sign_in(stage)
    take_mails(stage)
    for other in PURPOSES:
        if other == purpose or (other == "verification" and not session):
            continue
        answer = use(stage, other, secret, session)
        assert answer.status_code == 401, other
        assert answer.json["error"]["code"] in ("INVALID_CODE", "INVALID_TOKEN")
    assert stage.call("GET", "/api/auth/me", token=secret).json["user_id"] is None
    answer = stage.call(
        "POST", "/api/auth/totp/challenge", {"challenge": secret, "code": "123456"}
    )
    assert answer.status_code == 401
    assert use(stage, purpose, secret, session).status_code == 200
    assert use(stage, purpose, secret, session).status_code == 401, "once"
