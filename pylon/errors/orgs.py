"""Errors of organisations: their members, roles and invites.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class OrgNotConfigured(PylonError):
    """The app has no organisations, or declares one of their entities without the fields that the
    routes write.

    Remedy: add "org": {} to auth in the manifest; docs/manifest.md has the fields.
    """

    code = "ORG_NOT_CONFIGURED"
    status = 501


class OrgNotFound(PylonError):
    """There is no such organisation, or the caller is no member of it.

    Remedy: use an id of GET /api/auth/orgs.
    """

    code = "ORG_NOT_FOUND"
    status = 404


class NoMember(PylonError):
    """The user is no member of the organisation.

    Remedy: use a user of GET /api/auth/orgs/<id>/members.
    """

    code = "NOT_A_MEMBER"
    status = 404


class MissingTotp(PylonError):
    """The caller's role in the organisation counts only for users with an authenticator app
    (`auth.totp.required_roles` of the manifest), and the caller has none.

    Remedy: set one up with POST /api/auth/totp/enroll.
    """

    code = "TOTP_SETUP_REQUIRED"
    status = 403


class BadRole(PylonError):
    """The role is none of the app.

    Remedy: use owner, admin, member, or one of auth.org_roles in the manifest.
    """

    code = "BAD_ROLE"
    status = 400


class MissingName(PylonError):
    """The organisation was given no name.

    Remedy: send {"name": "..."}.
    """

    code = "MISSING_NAME"
    status = 400


class MissingOrgId(PylonError):
    """It was not said which organisation to select.

    Remedy: send {"orgId": "..."}, or null to leave the present one.
    """

    code = "MISSING_ORG_ID"
    status = 400


class InviteNotFound(PylonError):
    """The invite is unknown: it was revoked, replaced by a later one, or its organisation is gone.

    Remedy: ask for a new invite.
    """

    code = "INVITE_NOT_FOUND"
    status = 400


class InviteExpired(PylonError):
    """The invite is older than 7 days.

    Remedy: ask for a new invite.
    """

    code = "INVITE_EXPIRED"
    status = 400


class AlreadyAccepted(PylonError):
    """The invite was accepted before.

    Remedy: ask for a new invite if you have left the organisation since.
    """

    code = "ALREADY_ACCEPTED"
    status = 400


class WrongEmail(PylonError):
    """The invite is for another address than that of the caller's account.

    Remedy: sign in with the account of the address that the invite was sent to.
    """

    code = "WRONG_EMAIL"
    status = 400


class AlreadyMember(PylonError):
    """The user is a member of the organisation already.

    Remedy: none is needed; PUT /api/auth/orgs/<id>/members/<user> changes a role.
    """

    code = "ALREADY_MEMBER"
    status = 400
