"""Second factor: whether an account asks for one, and whether a code answers.

`read_factors` reads what an account has. `accept_code` checks a code of the authenticator app or a
backup code, and returns the conditional steps that use it up. A caller carries them out in the
transaction of their effect: of two requests with one code one is refused with `RecordConflict`.

A secret that is enrolled is a record of `totp`. One that waits for its first code is a record of
`tokens` with the purpose `totp_pending`, so the secret before stays in force meanwhile.

Invariants: secrets of apps are sealed, backup codes are MACs (`pylon.auth.keys`). An attempt is
counted before the code is compared (`count_attempt`), in a write that its failure does not undo.
Called by `sign_in` and the flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step, carry_out
from pylon.errors import InvalidTotpCode, TotpNotEnrolled
from pylon.storage.auth_ops import (
    CheckRecords,
    Condition,
    DropRecords,
    PutRecord,
    SetRecords,
)
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Reader
from workers.identity import rates, totp
from workers.identity.identity import Identity

PENDING: Final = "totp_pending"  # a purpose of `tokens`
_BACKUP_PURPOSE: Final = "backup_code"  # of a MAC
_WRONG: Final = "The code is wrong, was used before, or is too old"


@dataclass(frozen=True, slots=True)
class Factors:
    """What an account has besides its first factor. `sealed` is None without an authenticator."""

    sealed: str | None = field(default=None, repr=False)
    last_step: int | None = None
    backup_hashes: tuple[str, ...] = field(default=(), repr=False)  # of unused ones

    @property
    def is_on(self) -> bool:
        """Return whether sign-ins ask for a code."""
        return self.sealed is not None

    @property
    def methods(self) -> list[str]:
        """Return what answers a challenge."""
        return ["totp", "backup_code"] if self.backup_hashes else ["totp"]

    def as_before(self, user_id: str) -> CheckRecords:
        """Return the step that holds while the account has an authenticator, or still has none."""
        return CheckRecords(
            "totp", [Condition("user_id", "=", user_id)], 1 if self.is_on else 0
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """A code that is right: how (`totp` or `backup_code`), and the steps that use it up."""

    method: str
    steps: list[Step]


def read_factors(identity: Identity, user_id: str) -> Factors:
    """Return the second factors of an account, of one commit."""
    of_user = [Condition("user_id", "=", user_id)]

    def read(reader: Reader) -> tuple[list[dict[str, Value]], list[dict[str, Value]]]:
        return reader.at_one_commit(lambda: (
            reader.records("totp", of_user),
            reader.records("backup_codes", [*of_user, Condition("used_at", "null")]),
        ))

    secrets, codes = identity.store.point(read)
    if not secrets:
        return Factors()
    last_step = secrets[0]["last_step"]
    return Factors(
        str(secrets[0]["sealed"]), None if last_step is None else int(last_step),
        tuple(str(code["hash"]) for code in codes),
    )


def accept_code(
    identity: Identity, user_id: str, factors: Factors, text: str, *, takes_backup: bool = True
) -> Accepted:
    """Return the steps that use a code up. The attempt is counted (`count_attempt`).

    Args:
        text: as the user has typed it.

    Raises:
        TotpNotEnrolled: the account has no authenticator.
        InvalidTotpCode: it is none of its codes now.
        SealBroken: the secret cannot be opened.
    """
    if factors.sealed is None:
        raise TotpNotEnrolled("This account has no authenticator app")
    of_user = Condition("user_id", "=", user_id)
    code = totp.as_code(text)
    if code is not None:
        secret = identity.keys.open("totp", "sealed", user_id, factors.sealed)
        step = totp.find_step(secret.decode(), code, identity.now_s(), factors.last_step)
        if step is None:
            raise InvalidTotpCode(_WRONG)
        values: dict[str, Value] = {"last_step": step}
        if not identity.keys.is_current(factors.sealed):  # the secret key has changed
            values["sealed"] = identity.keys.seal("totp", "sealed", user_id, secret)
        is_unused = [of_user, Condition("sealed", "=", factors.sealed)]
        if factors.last_step is None:  # of a record that was imported
            is_unused.append(Condition("last_step", "null"))
        else:
            is_unused.append(Condition("last_step", "<", step))
        return Accepted("totp", [SetRecords("totp", is_unused, values, 1)])
    backup = totp.as_backup_code(text) if takes_backup else None
    if backup is None:
        raise InvalidTotpCode(_WRONG)
    macs = identity.keys.macs(_BACKUP_PURPOSE, user_id, backup)
    found = next((mac for mac in macs if mac in factors.backup_hashes), None)
    if found is None:
        raise InvalidTotpCode(_WRONG)
    return Accepted("backup_code", [
        factors.as_before(user_id),
        SetRecords(
            "backup_codes", [of_user, Condition("hash", "=", found), Condition("used_at", "null")],
            {"used_at": identity.now_s()}, 1,
        ),
    ])


def count_attempt(
    identity: Identity, user_id: str, address: str, steps: Sequence[Step] = ()
) -> None:
    """Count an attempt to give a code, before it is compared. `steps` are carried out with it.

    Raises:
        RateLimited: too many from this address, or for this account.
        RecordConflict: of one of the steps.
    """
    taken = rates.take_rates(
        identity, (rates.VERIFY_IP, address), (rates.VERIFY_ACCOUNT, user_id)
    )
    if steps or taken:
        carry_out(identity.writer.submit, [*taken, *steps])


def pending_hash(user_id: str) -> str:
    """Return the key of the token with the secret that waits for its first code."""
    return hash_token(f"{PENDING}|{user_id}")


def new_backup_records(identity: Identity, user_id: str, codes: Sequence[str]) -> list[Step]:
    """Return the steps that replace the backup codes of an account."""
    steps: list[Step] = [DropRecords("backup_codes", [Condition("user_id", "=", user_id)])]
    for code in codes:
        bare = totp.as_backup_code(code)
        assert bare is not None
        steps.append(PutRecord("backup_codes", {
            "user_id": user_id, "hash": identity.keys.mac(_BACKUP_PURPOSE, user_id, bare),
            "created_at": identity.now_s(), "used_at": None,
        }))
    return steps


def drop_factors(user_id: str) -> list[Step]:
    """Return the steps that remove the authenticator, its backup codes and the trusted devices:
    also for `pylonctl user reset-totp`."""
    of_user = [Condition("user_id", "=", user_id)]
    return [
        DropRecords("totp", of_user), DropRecords("backup_codes", of_user),
        DropRecords("tokens", [*of_user, Condition("purpose", "=", PENDING)]),
        DropRecords("trusted_devices", of_user),
    ]
