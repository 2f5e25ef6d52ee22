"""Targets: what codegen writes, by the word of the command line and of PYLON_CODEGEN.

Called by `pylonctl codegen` and `pylonctl dev`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from pylon.app_manifest import document_text
from pylon.codegen.python import python_structs
from pylon.codegen.schemas import json_schema
from pylon.codegen.typescript import typescript
from pylon.config import Config
from pylon.manifest.canonical import manifest_digest
from pylon.manifest.model import Manifest
from pylon.manifest.public import complete_document

Generate = Callable[[Manifest, Config], str]


def generate(kind: str, manifest: Manifest, config: Config) -> str:
    """Return the text of a target.

    Args:
        kind: a word of `TARGETS`.
    """
    return TARGETS[kind](manifest, config)


def parse_targets(text: str) -> list[tuple[str, str]]:
    """Return the targets of PYLON_CODEGEN, such as ``ts:web/pylon.ts,python:models.py``.

    Raises:
        ValueError: says what is allowed.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, path = part.partition(":")
        if kind not in TARGETS or not path:
            raise ValueError(f"{part}: write KIND:FILE, with one of {', '.join(TARGETS)}")
        found.append((kind, path))
    return found


def _openapi(manifest: Manifest, config: Config) -> str:
    from pylon.openapi.document import openapi_document

    document = openapi_document(manifest, config)
    document = {"x-pylon-manifest": f"sha256:{manifest_digest(manifest.source)}", **document}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


TARGETS: Final[dict[str, Generate]] = {
    "ts": lambda manifest, _: typescript(manifest, manifest_digest(manifest.source)),
    "python": lambda manifest, _: python_structs(manifest, manifest_digest(manifest.source)),
    "openapi": _openapi,
    "jsonschema": lambda manifest, _: json_schema(manifest, manifest_digest(manifest.source)),
    "manifest": lambda manifest, _: document_text(complete_document(manifest)),
}
