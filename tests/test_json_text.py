"""The bounds of JSON texts: no text beyond them passes, and every text within them does."""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import json_text, limits
from pylon.errors import InvalidJson, LimitExceeded, PylonError
from pylon.json_text import check_bounds
from pylon.values import decode_body
from tests.support.examples import count_examples

TEXTS = st.text(st.sampled_from('a"\\[]{},:\n\tü😀'), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def nodes_of(value: Any) -> int:
    """Values, an empty container counted as two."""
    if isinstance(value, dict):
        return 1 + (sum(map(nodes_of, value.values())) or 1)
    if isinstance(value, list):
        return 1 + (sum(map(nodes_of, value)) or 1)
    return 1


def verdict(raw: bytes, nodes: int = limits.JSON_NODES) -> type[PylonError] | None:
    try:
        check_bounds(raw, nodes)
    except PylonError as error:
        return type(error)
    return None


@settings(max_examples=count_examples(400))
@given(JSON, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 12))
def test_the_scan_counts_as_a_walk_over_the_decoded_value_does(
    value: Any, ascii_only: bool, indent: int | None, window: int
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    depth, nodes = depth_of(value), nodes_of(value)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_text, "_WINDOW_BYTES", window)  # every place is an edge once
        patched.setattr(limits, "JSON_DEPTH", depth)
        assert verdict(raw) is None
        if 2 * (nodes - 1) < len(raw) or raw.count(b"[") + raw.count(b"{") > depth:
            assert verdict(raw, nodes - 1) is LimitExceeded
        assert verdict(raw, nodes) is None
        patched.setattr(limits, "JSON_DEPTH", depth - 1)
        assert depth == 0 or verdict(raw) is InvalidJson


@pytest.mark.parametrize("text", [
    "[" * 100_000, '"[{' * 50_000, "\\" * 99_999, '\\"[' * 50_000, "]" * 100_000, "😀[" * 20_000,
])
def test_long_texts_full_of_brackets_are_no_nesting(text: str) -> None:
    body = {"changes": [{"data": {"text": text, "n": number}} for number in range(40)]}
    assert verdict(orjson.dumps(body)) is None
    assert verdict(json.dumps(body).encode()) is None


def test_depth_is_found_wherever_it_is() -> None:
    deep = b"[" * limits.JSON_DEPTH + b"]" * limits.JSON_DEPTH
    filler = b'{"a":["b",{}]},' * 9_000  # more than a window
    assert verdict(b"[" + filler + deep[1:-1] + b"]") is None
    assert verdict(b"[" + filler + deep + b"]") is InvalidJson
    mixed = b'[{"a":' * 33 + b"1" + b"}]" * 33
    assert verdict(mixed) is InvalidJson


@given(st.binary(max_size=200))
def test_any_bytes_have_a_verdict(raw: bytes) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "JSON_DEPTH", 1)
        assert verdict(raw * 3, 4) in {None, InvalidJson, LimitExceeded}


def test_the_scan_makes_no_object_for_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is done in C: Python is entered a few times for each window."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    windows = 160
    raw = b"[" + b'"a[",[],{"b":1},' * (windows * 65_536 // 17) + b"0]"
    sys.setprofile(count)
    try:
        verdict(raw, 100_000_000)
    finally:
        sys.setprofile(None)
    assert calls < windows * 120


def test_operators_own_file_may_have_any_number_of_values() -> None:
    raw = b"[" + b"0," * limits.JSON_NODES + b"0]"
    with pytest.raises(LimitExceeded):
        decode_body(raw)
    assert len(decode_body(raw, nodes=len(raw))) == limits.JSON_NODES + 1
