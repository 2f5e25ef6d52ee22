"""Flows of trusted devices: the list of the caller's own, and its end (spec/identity.md §1.5)."""

from __future__ import annotations

from datetime import UTC, datetime

from pylon.api.identity.totp_bodies import RevokedAnswer, TrustedDevice, TrustedDevicesAnswer
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import NotFound
from pylon.storage.auth_tables import Value
from workers.identity.identity import Call, Identity
from workers.identity.trusted_devices import cleared_cookie, drop_devices, list_devices


def list_trusted_devices(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the devices of the caller."""
    return json_answer(TrustedDevicesAnswer([
        TrustedDevice(
            str(device["id"]), str(device["label"]), _text(device["created_at"]),
            _text(device["expires_at"]),
        )
        for device in list_devices(identity, call.facts.auth.user_id or "")
    ]))


def revoke_trusted_device(identity: Identity, call: Call) -> IdentityAnswer:
    """Trust one device no more.

    Raises:
        NotFound: the caller has none with this id.
    """
    drop = drop_devices(call.facts.auth.user_id or "", call.params["device_id"])
    [reply] = carry_out(identity.writer.submit, [drop])
    if not reply.count:
        raise NotFound("No such trusted device")
    return json_answer(RevokedAnswer(reply.count))


def revoke_trusted_devices(identity: Identity, call: Call) -> IdentityAnswer:
    """Trust no device of the caller any more."""
    [reply] = carry_out(identity.writer.submit, [drop_devices(call.facts.auth.user_id or "")])
    return json_answer(RevokedAnswer(reply.count or 0), cookies=(cleared_cookie(identity),))


def _text(seconds: Value) -> str:
    return datetime.fromtimestamp(int(seconds or 0), UTC).isoformat().replace("+00:00", "Z")
