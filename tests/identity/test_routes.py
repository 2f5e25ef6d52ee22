"""The table of routes of sign-in: each has a flow, and each caller is judged before it."""

from __future__ import annotations

import re
from typing import Final

import pytest

from pylon.api.identity import forwarding, routes
from pylon.api.identity.route import IdentityRoute, Who
from pylon.api.identity.routes import ROUTES
from pylon.auth.cookies import DEVICE, identity_cookie_name, identity_cookies
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext, Caller
from pylon.errors import AuthRequired, Forbidden, PylonError
from tests.support.api import ApiStage
from workers.identity.actions import ACTIONS

USER: Final = Caller(AuthContext("u1"), "a" * 64)
ROUTE: Final = IdentityRoute("POST", "/api/x/{id}", "x", "anyone", "X", {200: None})


def test_each_route_has_a_flow_and_each_flow_a_route() -> None:
    actions = [route.action for route in ROUTES]
    assert sorted(actions) == sorted(ACTIONS)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize(("who", "caller", "error"), [
    ("anyone", Caller(ANONYMOUS), None),
    ("user", Caller(ANONYMOUS), AuthRequired),
    ("user", Caller(AuthContext("u1")), None),
    ("session", Caller(ANONYMOUS), AuthRequired),
    ("session", USER, None),
    ("session", Caller(ADMIN), AuthRequired),  # the admin token is no session
    ("fresh", Caller(ANONYMOUS), AuthRequired),
    ("fresh", USER, None),
    ("admin", USER, Forbidden),
    ("admin", Caller(ADMIN), None),
])
def test_callers_that_a_route_refuses(
    who: Who, caller: Caller, error: type[PylonError] | None
) -> None:
    route = IdentityRoute("POST", "/api/x", "x", who, "X", {200: None})
    if error is None:
        forwarding.check_caller(route, caller)
    else:
        with pytest.raises(error):
            forwarding.check_caller(route, caller)


def test_paths_with_parameters_are_matched_by_segment() -> None:
    pattern = routes.matcher([ROUTE])
    assert pattern.fullmatch("/api/x/1") and not pattern.fullmatch("/api/x/1/2")
    assert routes.matcher([]).fullmatch("") is None


def test_cookies_of_sign_in_are_named_after_the_session_cookie() -> None:
    assert identity_cookie_name(DEVICE, "app_session") == "app_dev"
    header = "app_session=t; app_dev=d; pylon_trusted_device=p; app_ml=1; app_ml=2"
    assert identity_cookies(header, "app_session") == {"device": "d", "trusted_device": "p"}


def test_no_answer_of_sign_in_may_be_cached(stage: ApiStage) -> None:
    assert stage.call("GET", "/api/auth/providers").headers["cache-control"] == "no-store"


def test_actions_name_their_operations() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", route.action) for route in ROUTES)
