"""One route of sign-in, as the tables of `routes` declare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pylon.body_types import BodyType
from pylon.config import Config
from pylon.errors import PylonError
from pylon.rates import Rate

# "anyone"; "user": any signed-in caller, also by API key; "session": no API key and no JWT;
# "fresh": a session whose sign-in is not older than `auth.reauth_s`; "admin".
Who = Literal["anyone", "user", "session", "fresh", "admin"]


@dataclass(frozen=True, slots=True)
class IdentityRoute:
    """One method of one path.

    Attributes:
        action: a key of the identity process's table of actions.
        answers: the type of the body by status; None: no JSON (a page, or a redirect).
        raises: the errors of its flow, for the OpenAPI document.
        rate: the rate of client addresses, which the HTTP worker spends first.
        params: the query parameters that the flow reads. Those of the path come by themselves.
        required: members of the body that the flow requires, though its type does not.
        takes_any_params: others may add query parameters, which are ignored.
        takes_form: also takes a form of our own pages, whose fields become members of the body.
        takes_any_origin: also takes requests of foreign pages: the flow has its own state.
        hides_account: its answer leaves no earlier than `limits.MAIL_ANSWER_S` after its call, so
            that the time of the work does not tell whether an address has an account.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    action: str
    who: Who
    summary: str
    answers: dict[int, Any]
    body: BodyType[Any] | None = None
    raises: tuple[type[PylonError], ...] = ()
    rate: Callable[[Config], Rate] | None = None
    params: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    takes_any_params: bool = False
    takes_form: bool = False
    takes_any_origin: bool = False
    hides_account: bool = False
