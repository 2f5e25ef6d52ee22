"""Errors of what people type when they sign up or sign in: addresses, passwords, names.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class InvalidEmail(PylonError):
    """The e-mail address is not one that mail can be sent to. The message says what is wrong.

    Remedy: send one address such as name@example.com, without a display name, quotes or spaces.
    """

    code = "INVALID_EMAIL"
    status = 400


class WeakPassword(PylonError):
    """The new password is too short, is among the commonest ones, or is made of the app's name or
    of the e-mail address. The message says which.

    Remedy: use a longer password, for example of four random words. `auth.password.min_length` in
    the manifest sets the least length.
    """

    code = "WEAK_PASSWORD"
    status = 400


class PasswordTooLong(PylonError):
    """The new password has more than 1,024 bytes in UTF-8.

    Remedy: use a shorter one.
    """

    code = "PASSWORD_TOO_LONG"
    status = 400


class PwnedPassword(PylonError):
    """The new password is in a list of passwords that were stolen elsewhere.

    Remedy: use another password; change it wherever else it is used.
    """

    code = "PWNED_PASSWORD"
    status = 400


class InvalidName(PylonError):
    """A name for people to read is empty, longer than 100 characters, or has a control character.

    Remedy: send a name of 1 to 100 characters without line breaks.
    """

    code = "INVALID_NAME"
    status = 400


class EmailNotConfigured(PylonError):
    """The route sends a mail, and the server has nothing to send mails by.

    Remedy: an operator sets PYLON_EMAIL_PROVIDER and what belongs to it, and tries
    pylonctl mail test ADDRESS.
    """

    code = "EMAIL_NOT_CONFIGURED"
    status = 503


class EmailSendFailed(PylonError):
    """The mail server or service did not accept a mail. A mail of sign-in is tried again until its
    content expires; pylonctl mail test shows the reply.

    Remedy: correct what the message or the reply names: the address of the server, its
    certificate, the user and password, or the sender's address.
    """

    code = "EMAIL_SEND_FAILED"
    status = 503
    retryable = True


class EmailRefused(PylonError):
    """The mail server or service will never accept this mail, for example because the mailbox does
    not exist.

    Remedy: check the recipient's address; the reply says more.
    """

    code = "EMAIL_REFUSED"
    status = 502


class MissingEmail(PylonError):
    """The request needs an e-mail address, and neither the body nor the account has one.

    Remedy: send the member `email`, or store an address in the user's row.
    """

    code = "MISSING_EMAIL"
    status = 400


class MissingCode(PylonError):
    """The body lacks the code of the mail.

    Remedy: send the member `code` with the six digits.
    """

    code = "MISSING_CODE"
    status = 400


class InvalidCode(PylonError):
    """The code is wrong, was used, has expired, or belongs to another address or purpose.

    Remedy: type the newest code, or ask for another one.
    """

    code = "INVALID_CODE"
    status = 401


class MissingToken(PylonError):
    """The request lacks the token of a link.

    Remedy: send the member `token`, as the link of the mail has it.
    """

    code = "MISSING_TOKEN"
    status = 400


class InvalidToken(PylonError):
    """The token of a link is unknown, was used, has expired, or is for another purpose.

    Remedy: ask for another mail.
    """

    code = "INVALID_TOKEN"
    status = 401


class DisposableEmail(PylonError):
    """The address is of a domain that gives mailboxes to anybody for a few minutes.

    Remedy: use an address that you keep. The operator chooses the domains
    (`PYLON_DISPOSABLE_FILE`).
    """

    code = "DISPOSABLE_EMAIL"
    status = 400


class CaptchaRequired(PylonError):
    """The request needs the token of a captcha, and has none.

    Remedy: show the widget of the service, and send its token as `captcha` in the body.
    """

    code = "CAPTCHA_REQUIRED"
    status = 400


class CaptchaFailed(PylonError):
    """The service of captchas does not know the token, or it was used before.

    Remedy: have another captcha solved. A token counts once, and for a few minutes.
    """

    code = "CAPTCHA_FAILED"
    status = 403


class EmailTaken(PylonError):
    """Another account has the address.

    Remedy: sign in with that address, or use another one.
    """

    code = "EMAIL_TAKEN"
    status = 409


class UserNotFound(PylonError):
    """The row of the user who calls does not exist: it was deleted.

    Remedy: sign in again.
    """

    code = "USER_NOT_FOUND"
    status = 404
