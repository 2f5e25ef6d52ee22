"""The table of actions: the flow of each action of `pylon.api.identity.routes`.

A new flow is one line here and one there; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon.bus.identity import IdentityAnswer
from workers.identity.flows import (
    account,
    account_export,
    api_keys,
    audit,
    guests,
    passwords,
    providers,
    resets,
    totp,
    trusted_devices,
)
from workers.identity.identity import Call, Identity

Flow = Callable[[Identity, Call], IdentityAnswer]

ACTIONS: Final[dict[str, Flow]] = {
    "api_key_list": api_keys.list_keys,
    "api_key_create": api_keys.create,
    "api_key_revoke": api_keys.revoke,
    "api_key_rotate": api_keys.rotate,
    "password_register": passwords.register,
    "password_login": passwords.login,
    "password_change": passwords.change,
    "password_reset_request": resets.request,
    "password_reset": resets.complete,
    "providers": providers.list_providers,
    "upgrade": guests.upgrade,
    "totp_enroll": totp.enroll,
    "totp_verify": totp.verify,
    "totp_disable": totp.disable,
    "totp_backup_codes": totp.regenerate_backup_codes,
    "totp_challenge": totp.answer_challenge,
    "trusted_devices": trusted_devices.list_trusted_devices,
    "trusted_device_revoke": trusted_devices.revoke_trusted_device,
    "trusted_devices_revoke": trusted_devices.revoke_trusted_devices,
    "audit": audit.list_own,
    "delete_account": account.delete_account,
    "export_account": account_export.export_account,
    "admin_delete_account": account.delete_account_of,
    "admin_export_account": account_export.export_account_of,
    "audit_tenant": audit.list_of_tenant,
    "audit_all": audit.list_all,
}
