"""Ways to sign in: whether a user has another one than that which is to go.

Invariant: the answer is a step, so the other way must still be there at the commit. Called by the
flows that unlink a provider or delete a passkey.
"""

from __future__ import annotations

from pylon.errors import LastSignInMethod
from pylon.storage.auth_ops import CheckRecords, Condition
from workers.identity.accounts import EMAIL
from workers.identity.identity import Identity
from workers.identity.provider_accounts import KIND_PREFIX, kind_of

_KINDS_READ = 100


def other_way(
    identity: Identity, user_id: str, *, without_provider: str | None = None,
    without_passkey: str | None = None,
) -> CheckRecords:
    """Return a step that holds while the user can sign in without a provider, or a passkey.

    Raises:
        LastSignInMethod
    """
    of_user = Condition("user_id", "=", user_id)
    ways = [CheckRecords("passwords", [of_user], 1), CheckRecords("identities", [
        of_user, Condition("kind", "=", EMAIL), Condition("verified_at", "not null")
    ], 1)]
    gone = None if without_provider is None else kind_of(without_provider)
    others = identity.store.point(
        lambda reader: reader.records("identities", [of_user], ("created_at",), _KINDS_READ)
    )
    ways += [
        CheckRecords("identities", [
            of_user, Condition("kind", "=", record["kind"]),
            Condition("subject", "=", record["subject"]),
        ], 1)
        for record in others
        if str(record["kind"]).startswith(KIND_PREFIX) and record["kind"] != gone
    ]
    where = [of_user]
    if without_passkey is not None:
        where.append(Condition("credential_id", "!=", without_passkey))
    keys = identity.store.point(lambda reader: reader.records("passkeys", where, limit=1))
    ways += [
        CheckRecords(
            "passkeys", [of_user, Condition("credential_id", "=", key["credential_id"])], 1
        )
        for key in keys
    ]
    for way in ways:
        if identity.store.point(
            lambda reader, way=way: reader.count_records(way.table, way.where)  # type: ignore[misc]
        ) == way.expected:
            return way
    raise LastSignInMethod(
        "This is the last way in which you can sign in",
        hint="Set a password, verify your e-mail address, link a provider or add a passkey first",
    )
