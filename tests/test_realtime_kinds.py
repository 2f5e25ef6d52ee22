"""pylon.realtime.kinds and app_module: registering simulations, and refusing what is wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import ShardConfig, SimState, shard
from pylon.errors import InputRejected, StartRefused
from pylon.realtime import app_module, kinds
from pylon.realtime.snapshots import Format, encode
from tests.support.realtime import Counters


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    kinds.clear_registry()
    before = list(sys.path)
    yield
    kinds.clear_registry()
    sys.modules.pop("pylon_app", None)
    sys.path[:] = before


def load(folder: Path, source: str) -> None:
    path = folder / "game.py"
    path.write_text(textwrap.dedent(source))
    app_module.load_app_module(path)


def test_a_kind_is_found_by_the_name_before_the_colon() -> None:
    shard("arena", tick_rate_hz=30)(Counters)
    kind = kinds.kind_of("arena:42")
    assert kind is not None
    assert kind.config == ShardConfig(tick_rate_hz=30)
    assert kinds.kind_of("arena") is kind
    for unknown in ("", "aren", "arenas:1", "arena:\n", "arena:" + "x" * 200):
        assert kinds.kind_of(unknown) is None


@pytest.mark.parametrize("name", ["", "1a", "a:b", "a b", "x" * 65, "é"])
def test_a_name_is_checked(name: str) -> None:
    with pytest.raises(StartRefused, match="a name is"):
        shard(name)(Counters)


def test_a_name_is_registered_once() -> None:
    shard("arena")(Counters)
    with pytest.raises(StartRefused, match="registered twice, by Counters"):
        shard("arena")(Counters)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tick_rate": 20}, 'no setting "tick_rate"; there are allow_reconnection_s'),
        ({"tick_rate_hz": "20"}, "tick_rate_hz is '20'; it must be a number of 0 or more"),
        ({"tick_rate_hz": 2_000}, "at most 1000"),
        ({"max_subscribers": 1.5}, "a whole number of 0 or more"),
        ({"max_subscribers": True}, "a whole number"),
        ({"on_demand": 1}, "True or False"),
        ({"tick_budget_s": -1}, "0 or more"),
        ({"tick_rate_hz": float("nan")}, "0 or more"),
    ],
)
def test_a_setting_is_checked(config: dict[str, Any], said: str) -> None:
    with pytest.raises(StartRefused) as caught:
        shard("arena", **config)(Counters)
    assert said in caught.value.message


def test_a_class_must_be_a_simulation() -> None:
    with pytest.raises(StartRefused, match="subclass"):
        shard("arena")(dict)  # type: ignore[type-var]


def test_an_input_must_be_a_type_that_can_be_validated() -> None:
    class Odd(SimState):
        Input = complex | bytes | str | int

    with pytest.raises(StartRefused, match=r"Odd\.Input"):
        shard("arena")(Odd)


def test_an_app_is_loaded_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "rules_of_this_game.py").write_text("RATE = 12\n")
    load(tmp_path, """
        from rules_of_this_game import RATE
        from pylon import SimState, shard

        @shard("arena", tick_rate_hz=RATE)
        class Arena(SimState):
            pass
    """)
    assert kinds.kinds()["arena"].config.tick_rate_hz == 12


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nraise ValueError('oh')\n", "line 2: ValueError: oh"),
        ("x = (\n", "line 1: SyntaxError"),
        ("import not_to_be_found\n", "line 1: ModuleNotFoundError"),
        ("from pylon import shard\nshard('')(int)\n", "a name is"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_refused_with_its_line(
    tmp_path: Path, source: str, said: str
) -> None:
    with pytest.raises(StartRefused) as caught:
        load(tmp_path, source)
    assert said in caught.value.message
    assert "pylon_app" not in sys.modules


@pytest.mark.parametrize("name", ["missing.py", ".", "game.txt"])
def test_what_is_no_python_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "game.txt").write_text("")
    with pytest.raises(StartRefused, match="PYLON_APP is"):
        app_module.load_app_module(tmp_path / name)


@pytest.mark.usefixtures("processes")
def test_who_imports_pylon_does_not_load_the_simulations() -> None:
    code = "import pylon, sys; print('pylon.realtime' in sys.modules, pylon.SimState.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False SimState\n"


@pytest.mark.usefixtures("processes")
def test_an_app_may_import_what_we_put_off(tmp_path: Path) -> None:
    (tmp_path / "game.py").write_text(textwrap.dedent("""
        import asyncio.subprocess
        import hashlib
        import importlib.metadata
        import ssl
        import subprocess
        import tempfile
        import xml.etree.ElementTree as tree

        hashlib.scrypt(b"x", salt=b"y", n=2, r=1, p=1)
        assert hashlib.new("sha512_256", b"").hexdigest()
        assert ssl.create_default_context() and tree.fromstring("<a/>").tag == "a"
        assert asyncio.run(asyncio.sleep(0, 7)) == 7
        assert subprocess.run(["true"]).returncode == 0
        assert importlib.metadata.version("pylon-server")
    """))
    code = (
        "from pylon.runtime.gevent_patch import patch; patch()\n"
        "import hashlib; ours = hashlib.sha256(b'1').hexdigest()\n"
        "import pylon.app, workers.shards.server\n"
        "from pathlib import Path; from pylon.realtime.app_module import load_app_module\n"
        f"load_app_module(Path({str(tmp_path / 'game.py')!r}))\n"
        "assert hashlib.sha256(b'1').hexdigest() == ours; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("fine\n", "")


NOT_UTF8 = [
    b"\x81\xa1\x76\xa2\xff\xfe",  # {"v": a string that is not UTF-8}
    b"\x81\xa2\xff\xfe\x01",  # a key that is not
    b"\x91\x81\xa1\x76\xa1\x80",
]


@pytest.mark.parametrize("raw", NOT_UTF8, ids=lambda raw: raw.hex())
def test_a_text_that_is_not_utf8_is_refused_to_its_sender(raw: bytes) -> None:
    shard("arena")(Counters)
    kind = kinds.kind_of("arena")
    assert kind is not None
    with pytest.raises(InputRejected):
        kind.decode_input(raw, Format.MSGPACK)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**200])
def test_an_integer_that_no_snapshot_could_carry_is_refused_to_its_sender(number: int) -> None:
    shard("arena")(Counters)
    kind = kinds.kind_of("arena")
    assert kind is not None
    with pytest.raises(InputRejected):
        kind.decode_input(b'{"by":%d}' % number, Format.JSON)
    for carried in (2**64 - 1, -(2**63)):
        assert kind.decode_input(b'{"by":%d}' % carried, Format.JSON).by == carried


def test_a_snapshot_with_an_integer_beyond_64_bits_is_sent_in_both_formats() -> None:
    assert msgspec.json.decode(encode({"sum": 2**70}, Format.JSON)) == {"sum": 2**70}
    assert msgspec.msgpack.decode(encode({"sum": 2**70}, Format.MSGPACK)) == {"sum": 2.0**70}


@given(st.binary(max_size=40), st.sampled_from(Format))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes, form: Format) -> None:
    kinds.clear_registry()
    for declared in (dict[str, Any], Any):
        shard("arena" if declared is Any else "dicts")(
            type("Sim", (Counters,), {"Input": declared})
        )
    for name in ("arena", "dicts"):
        kind = kinds.kind_of(name)
        assert kind is not None
        try:
            kind.decode_input(raw, form)
        except InputRejected:
            continue
