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
    email_changes,
    email_verification,
    guests,
    invites,
    magic_codes,
    magic_links,
    orgs,
    passwords,
    providers,
    reauth,
    resets,
    totp,
    trusted_devices,
    users,
)
from workers.identity.identity import Call, Identity

Flow = Callable[[Identity, Call], IdentityAnswer]

ACTIONS: Final[dict[str, Flow]] = {
    "api_key_list": api_keys.list_keys,
    "api_key_create": api_keys.create,
    "api_key_revoke": api_keys.revoke,
    "api_key_rotate": api_keys.rotate,
    "api_key_admin_list": api_keys.admin_list,
    "api_key_admin_create": api_keys.admin_create,
    "api_key_admin_revoke": api_keys.admin_revoke,
    "password_register": passwords.register,
    "password_login": passwords.login,
    "password_change": passwords.change,
    "password_reset_request": resets.request,
    "password_reset": resets.complete,
    "org_list": orgs.list_orgs,
    "org_create": orgs.create,
    "org_get": orgs.get,
    "org_rename": orgs.rename,
    "org_delete": orgs.delete,
    "org_members": orgs.list_members,
    "org_role": orgs.set_role,
    "org_remove": orgs.remove_member,
    "org_select": orgs.select,
    "invite_list": invites.list_invites,
    "invite_create": invites.create,
    "invite_revoke": invites.revoke,
    "invite_accept": invites.accept,
    "providers": providers.list_providers,
    "admin_create_user": users.create_user,
    "admin_list_users": users.list_users,
    "admin_lock_user": users.lock_user,
    "admin_reset_totp": users.reset_totp,
    "admin_set_password": users.set_password,
    "admin_unlock_user": users.unlock_user,
    "reauth": reauth.reauthenticate,
    "upgrade": guests.upgrade,
    "send_magic_code": magic_codes.send,
    "verify_magic_code": magic_codes.verify,
    "send_magic_link": magic_links.send,
    "open_magic_link": magic_links.open_link,
    "verify_magic_link": magic_links.verify,
    "send_verification": email_verification.send,
    "verify_email": email_verification.verify,
    "request_email_change": email_changes.request,
    "open_email_change": email_changes.open_change,
    "confirm_email_change": email_changes.confirm,
    "open_email_revert": email_changes.open_revert,
    "revert_email_change": email_changes.revert,
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
