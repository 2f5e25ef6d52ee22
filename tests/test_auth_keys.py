"""Derived keys: MACs and sealed values, by the newest key and by those before."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pylon.auth.keys import Keys, hash_token
from pylon.errors import SealBroken

OLD, NEW = (hashlib.sha256(name).digest() for name in (b"old", b"new"))
PLACE = ("totp", "sealed", "user1")


def test_derived_keys_are_those_of_hkdf() -> None:
    for label in ("mac", "seal", "anything"):
        expected = HKDF(SHA256(), 32, salt=b"pylon", info=label.encode()).derive(OLD)
        assert Keys([OLD]).derive(label) == expected


def test_each_label_and_each_secret_gives_another_key() -> None:
    derived = [Keys([secret]).derive(label) for secret in (OLD, NEW) for label in ("a", "b", "ab")]
    assert len(set(derived)) == len(derived)


def test_a_mac_depends_on_purpose_on_each_text_and_on_their_limits() -> None:
    keys = Keys([OLD])
    macs = [
        keys.mac("code", "a@x.org", "123456"), keys.mac("verify", "a@x.org", "123456"),
        keys.mac("code", "b@x.org", "123456"), keys.mac("code", "a@x.org", "123457"),
        keys.mac("code", "a@x.org1", "23456"), keys.mac("code", "a@x.org"),
        Keys([NEW]).mac("code", "a@x.org", "123456"),
    ]
    assert all(first != second for first, second in combinations(macs, 2))
    assert keys.mac("code", "a@x.org", "123456") == macs[0]
    with pytest.raises(ValueError, match="NUL"):
        keys.mac("code", "a\0b")


def test_a_sealed_value_opens_in_its_place_only() -> None:
    keys = Keys([OLD])
    sealed = keys.seal(*PLACE, b"secret")
    assert keys.open(*PLACE, sealed) == b"secret"
    assert sealed.startswith(f"v1.{keys.kids[0]}.")
    assert "secret" not in sealed
    assert keys.seal(*PLACE, b"secret") != sealed  # another nonce
    others = (("totp", "sealed", "user2"), ("outbox", "sealed", "user1"), ("totp", "x", "user1"))
    for place in others:
        with pytest.raises(SealBroken, match="changed"):
            keys.open(*place, sealed)
    with pytest.raises(ValueError, match="place"):
        keys.seal("totp|sealed", "x", "user1", b"")


@pytest.mark.parametrize("change", [
    lambda sealed: "", lambda sealed: "plain", lambda sealed: sealed[:-4],
    lambda sealed: sealed[:-5] + ("A" if sealed[-5] != "A" else "B") + sealed[-4:],
    lambda sealed: sealed.replace("v1.", "v2."), lambda sealed: sealed + "!",
    lambda sealed: sealed.rpartition(".")[0] + ".", lambda sealed: sealed + "é",
], ids=range(8))
def test_a_changed_value_is_refused_without_its_text(change: object) -> None:
    keys = Keys([OLD])
    assert callable(change)
    sealed = keys.seal(*PLACE, b"secret")
    with pytest.raises(SealBroken) as caught:
        keys.open(*PLACE, change(sealed))
    assert sealed.rpartition(".")[2] not in str(caught.value)


def test_after_a_change_of_keys_both_open_and_the_new_one_seals() -> None:
    before, during, after = Keys([OLD]), Keys([NEW, OLD]), Keys([NEW])
    sealed = before.seal(*PLACE, b"secret")
    assert during.open(*PLACE, sealed) == b"secret"
    assert not during.is_current(sealed)
    again = during.seal(*PLACE, b"secret")
    assert during.is_current(again)
    assert after.open(*PLACE, again) == b"secret"
    with pytest.raises(SealBroken, match=f"{before.kids[0]}.*{after.kids[0]}"):
        after.open(*PLACE, sealed)
    assert during.macs("code", "1") == [after.mac("code", "1"), before.mac("code", "1")]


def test_a_probe_is_known_to_each_holder_of_its_key_and_to_nobody_else() -> None:
    probe = Keys([OLD]).probe()
    assert Keys([OLD]).knows_probe(probe)
    assert Keys([NEW, OLD]).knows_probe(probe)
    for text in (probe[:-1], "", "v1..", probe.replace("v1", "v2")):
        assert not Keys([OLD]).knows_probe(text)
    assert not Keys([NEW]).knows_probe(probe)


def test_no_key_is_in_a_repr() -> None:
    keys = Keys([NEW, OLD])
    keys.load_ciphers()
    shown = repr(keys) + str(keys) + repr(keys._secrets)
    for secret in (NEW, OLD):
        extracted = Keys([secret])._secrets[0].extracted
        for raw in (secret, extracted, keys.derive("seal"), keys.derive("mac")):
            assert raw.hex() not in shown
            assert repr(raw) not in shown


def test_keys_have_32_bytes() -> None:
    for secrets in ([], [b"short"], [OLD, NEW + b"x"]):
        with pytest.raises(ValueError, match="secret key"):
            Keys(secrets)


def test_a_token_is_hashed_as_session_ids_are() -> None:
    assert hash_token("pylon_x") == hashlib.sha256(b"pylon_x").hexdigest()


@pytest.mark.usefixtures("processes")
def test_macs_need_no_cryptography() -> None:
    done = subprocess.run(
        [sys.executable, "-c", (
            "import sys\nfrom pylon.auth.keys import Keys\n"
            "keys = Keys([bytes(range(32))])\nkeys.mac('a', 'b')\n"
            "assert keys.knows_probe(keys.probe())\n"
            "print([m for m in sys.modules if m.startswith('cryptography')])"
        )], capture_output=True, text=True, timeout=60, check=False,
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
