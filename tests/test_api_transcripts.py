"""The wire, step by step: each file of corpora/http is a conversation with a fresh server.

A step is `{"name", "send": [method, target, body?], "as"?, "headers"?, "status", "body"?,
"has"?, "lacks"?, "save"?}`. `as` is "admin", "guest", "nobody" or the name of a user; `body`
is the whole answer, `has` the header values that it must carry, `save` keeps the answer's
members under names that later steps use as `<name>`. In an expected body `<any>` matches
everything and `<hex40>` a row id; an error may have details that are not written down here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import ADMIN_TOKEN, METRICS_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores

CORPUS = Path(__file__).parent / "corpora" / "http"
ERROR_DETAILS = frozenset({"entity", "field", "fields", "value", "expected"})
STEP_DETAILS = frozenset({"code"})  # ours, of a refused step of a transaction
FILES = sorted(CORPUS.glob("*.json"))


def fill(value: Any, known: dict[str, str]) -> Any:
    """`value` with every `<name>` replaced."""
    if isinstance(value, str):
        return re.sub(r"<(\w+)>", lambda m: known.get(m[1], m[0]), value)
    if isinstance(value, list):
        return [fill(item, known) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, known) for key, item in value.items()}
    return value


def matches(got: Any, wanted: Any) -> bool:
    if wanted == "<any>":
        return True
    if wanted == "<hex40>":
        return isinstance(got, str) and re.fullmatch("[0-9a-f]{40}", got) is not None
    if isinstance(wanted, dict):
        details = ERROR_DETAILS if "code" in wanted else frozenset()
        if wanted.keys() >= {"op", "error"}:
            details = STEP_DETAILS
        return (
            isinstance(got, dict) and got.keys() - details == wanted.keys() - details
            and wanted.keys() <= got.keys()
            and all(matches(got[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list):
        return (
            isinstance(got, list) and len(got) == len(wanted)
            and all(matches(g, w) for g, w in zip(got, wanted, strict=True))
        )
    return type(got) is type(wanted) and bool(got == wanted)


def token_for(server: ApiStage, who: str, tokens: dict[str, str]) -> str | None:
    if who == "nobody":
        return None
    if who not in tokens:
        tokens[who] = server.guest() if who == "guest" else server.user(who)
    return tokens[who]


def _as_opened(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as in a database of the published server, which checks no reference."""
    return {"references": "none", **manifest}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_conversation(path: Path, tmp_path: Path) -> None:
    script = json.loads(path.read_text())
    known: dict[str, str] = {}
    tokens = {"admin": ADMIN_TOKEN, "metrics": METRICS_TOKEN}
    with serve_api(tmp_path, _as_opened(script["manifest"]), script.get("environ")) as server:
        for step in script["steps"]:
            name = step["name"]
            method, target, *body = fill(step["send"], known)
            answer = server.call(
                method, target, body[0].encode() if body and isinstance(body[0], str)
                else body[0] if body else None,
                token_for(server, step.get("as", "guest"), tokens), step.get("headers"),
            )
            assert answer.status_code == step["status"], (name, answer.text)
            if "body" in step:
                wanted = fill(step["body"], known)
                assert matches(answer.json, wanted), (name, answer.text, wanted)
            for header, value in step.get("has", {}).items():
                assert answer.headers.get(header) == value, (name, header, answer.headers)
            for header in step.get("lacks", []):
                assert header not in answer.headers, (name, header)
            for key, member in step.get("save", {}).items():
                known[key] = answer.json[member]


def test_there_are_conversations() -> None:
    assert len(FILES) >= 4
