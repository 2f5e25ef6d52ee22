"""Magic codes: sign-in by a six-digit code from a mail (spec/http.md §3.11.2, identity.md §1.4).

`send` does the same for known and unknown addresses: an unknown one becomes an account with
`verify`. Both check the rates first, in the store.
"""

from __future__ import annotations

from typing import Final

from pylon.api.identity.mail_bodies import SendBody, VerifyCodeBody
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import InvalidCode, RateLimited
from workers.identity import rates
from workers.identity.accounts import EMAIL, find_by_identity
from workers.identity.captcha import require_captcha
from workers.identity.codes import SIGN_IN_CODE, find_code, invalid_code, make_code
from workers.identity.identity import Call, Identity
from workers.identity.mailboxes import sign_in_by_mailbox, typed_address
from workers.identity.rates import take_rates
from workers.identity.sign_in import audit_of

CODE_S: Final = 600
METHOD: Final = "magic_code"  # of a session


def send(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/magic/send"""
    body = call.decode(SendBody)
    email = typed_address(identity, body.email)
    require_captcha(identity, call, body.captcha)
    made = make_code(identity, SIGN_IN_CODE, email.key, CODE_S)
    carry_out(identity.writer.submit, [
        *take_rates(
            identity, (rates.SEND_IP, call.facts.address), (rates.SEND_ADDRESS, email.key),
            (rates.SEND_PAUSE, email.key),
        ),
        *made.steps,
        identity.mails.put("MAGIC_CODE", email.text, CODE_S, code=made.secret),
    ])
    identity.wake_mail()
    answer = {"sent": True, "email": email.text}
    if identity.app.config.dev_mode:
        answer["dev_code"] = made.secret
    return json_answer(answer)


def verify(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/magic/verify"""
    body = call.decode(VerifyCodeBody)
    email = typed_address(identity, body.email)
    carry_out(identity.writer.submit, take_rates(
        identity, (rates.VERIFY_IP, call.facts.address), (rates.VERIFY_ACCOUNT, email.key)
    ))
    try:
        found = find_code(identity, SIGN_IN_CODE, email.key, body.code)
    except (InvalidCode, RateLimited) as ex:
        user_id = find_by_identity(identity, EMAIL, email.key)
        carry_out(identity.writer.submit, [audit_of(
            identity, call, "sign_in_failed", user_id, reason=ex.code,
            metadata={"method": METHOD},
        )])
        raise
    return sign_in_by_mailbox(identity, call, email, METHOD, found.use, invalid_code)
