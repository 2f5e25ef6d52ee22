"""Codes of authenticator apps (TOTP, RFC 6238), and backup codes.

A code is of SHA-1, six digits and a step of 30 s. One step of drift to both sides is accepted, and
each step once: `find_step` looks behind the last accepted one only.

Invariants: a code is compared in constant time. Backup codes have no letter or digit that looks
like another one. Nothing here is stored or logged. Called by `second_factor` and the flows.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import Final
from urllib.parse import quote

import pyotp

from pylon.clock import RandomSource

STEP_S: Final = 30
_DRIFT_STEPS: Final = 1
_SECRET_BYTES: Final = 20  # 32 characters in base32
_CODE: Final = re.compile(r"[0-9]{6}")
_BACKUP_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"  # without 0 O 1 I L
_BACKUP_CODE: Final = re.compile(f"[{_BACKUP_ALPHABET}]{{8}}")
_GAPS: Final = str.maketrans("", "", " -\t\u00a0")
BACKUP_CODES: Final = 10


def new_secret(random: RandomSource) -> str:
    """Return a new secret: 32 base32 characters."""
    return base64.b32encode(bytes.fromhex(random.token_hex(_SECRET_BYTES))).decode()


def enrolment_url(secret: str, account: str, issuer: str) -> str:
    """Return the otpauth URL that an authenticator app reads from a QR code."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='@')}"
    return (
        f"otpauth://totp/{label}?secret={secret}&issuer={quote(issuer, safe='')}"
        f"&algorithm=SHA1&digits=6&period={STEP_S}"
    )


def as_code(text: str) -> str | None:
    """Return the six digits of a code as a user has typed it; None: it is none."""
    bare = text.translate(_GAPS)
    return bare if _CODE.fullmatch(bare) else None


def find_step(secret: str, code: str, now_s: int, last_step: int | None = None) -> int | None:
    """Return the step that a code of six digits belongs to; None: to none that counts now.

    Args:
        now_s: Unix time.
        last_step: the newest step that was accepted: this one and those before count no more.
    """
    totp = pyotp.TOTP(secret)
    now_step = now_s // STEP_S
    found = None
    for step in range(now_step - _DRIFT_STEPS, now_step + _DRIFT_STEPS + 1):
        is_same = hmac.compare_digest(totp.generate_otp(step), code)
        if is_same and (last_step is None or step > last_step):
            found = step
    return found


def new_backup_codes(random: RandomSource) -> list[str]:
    """Return new backup codes, as users see them."""
    codes: dict[str, None] = {}
    while len(codes) < BACKUP_CODES:
        code = "".join(
            _BACKUP_ALPHABET[random.below(len(_BACKUP_ALPHABET))] for _ in range(8)
        )
        codes[f"{code[:4]}-{code[4:]}"] = None
    return list(codes)


def as_backup_code(text: str) -> str | None:
    """Return the eight characters of a backup code as a user has typed it; None: it is none."""
    bare = text.translate(_GAPS).upper()
    return bare if _BACKUP_CODE.fullmatch(bare) else None
