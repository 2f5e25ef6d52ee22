"""Operations on several rows or entities: batch, transaction, links, actions, export, import
(spec/http.md §3.8, §3.16)."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from pylon import errors, limits
from pylon.api.data.bodies import (
    BatchBody,
    ImportBody,
    LinkBody,
    Operation,
    UnlinkBody,
)
from pylon.manifest.model import Manifest
from pylon.manifest.model import Operation as DeclaredAction
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ADMIN_ONLY,
    JSON,
    STORE_ERRORS,
    WRITE_ERRORS,
    Paths,
    Schema,
    header,
    listed,
    nullable,
    obj,
    operation,
    query,
    ref,
    response,
    shared,
)
from pylon.openapi.values import written

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_LINES: Final = "application/x-ndjson"
_KEY: Final = shared("IdempotencyKey")
_WRITTEN: Final = ("X-Pylon-Change-Seq", "Idempotency-Replayed")
# A transaction without changes has no seq.
_WRITTEN_MAYBE: Final = ("Idempotency-Replayed",)
_KEYED: Final = (*WRITE_ERRORS, errors.IdempotencyKeyReused)


def write_schemas(manifest: Manifest) -> dict[str, Schema]:
    """Return the schemas of operations and their outcomes."""
    outcome = {"op": {}, "id": nullable(_TEXT), "error": _TEXT}
    return {
        "Operation": body_schema(
            Operation, {"entity": {"enum": [entity.name for entity in manifest.entities]}},
            required=("op", "entity"),
        ),
        "BatchResult": obj({**outcome, "ok": {"type": "boolean"}}, ("op", "ok")),
        "TransactResult": obj({**outcome, "code": _TEXT}, ("op",)),
    }


def write_paths(manifest: Manifest) -> Paths:
    """Return the paths of this family."""
    return {
        "/api/batch": _batch(),
        "/api/transact": _transact(),
        "/api/link": _link(manifest, linked=True),
        "/api/unlink": _link(manifest, linked=False),
        **{
            f"/api/actions/{quote(action.name, safe='')}": _action(action)
            for action in manifest.actions
        },
        "/api/export": _export("export", [entity.name for entity in manifest.entities]),
        **{
            f"/api/export/{entity.name}": _export(f"export{entity.name}", [entity.name])
            for entity in manifest.entities
        },
        "/api/import": _import(manifest),
    }


def _batch() -> dict[str, Any]:
    return operation(
        "post", "batch", "writes", "Many operations, each by itself",
        {200: response(
            "The outcome of each operation",
            obj({"results": listed(ref("BatchResult")), "succeeded": _COUNT, "failed": _COUNT}),
            headers=("Idempotency-Replayed",),
        )},
        raises=(*_KEYED, errors.MissingOperations), parameters=[_KEY],
        body=body_schema(BatchBody),
    )


def _transact() -> dict[str, Any]:
    operations = operation(
        "post", "transact", "writes", "Many operations, all or nothing",
        {200: response(
            "All operations are committed",
            obj({"committed": {"const": True}, "results": listed(ref("TransactResult"))}),
            headers=_WRITTEN_MAYBE,
        )},
        raises=(*_KEYED, errors.RateLimited), parameters=[_KEY],
        body=listed(
            {
                "anyOf": [ref("Operation"), {}],
                "description": '"$ref:<n>" is the id of the row that the earlier operation n '
                "inserts",
            },
            maxItems=limits.TRANSACT_OPS,
        ),
    )
    refused = operations["post"]["responses"]["400"]
    schema = refused["content"][JSON]["schema"]
    refused["description"] += "; or the first operation that failed; nothing is committed"
    refused["content"][JSON]["schema"] = {"anyOf": [
        obj({"committed": {"const": False}, "results": listed(ref("TransactResult"))}), schema,
    ]}
    return operations


def _link(manifest: Manifest, *, linked: bool) -> dict[str, Any]:
    done = "linked" if linked else "unlinked"
    return operation(
        "post", done.removesuffix("ed"), "writes",
        "Set a relation of a row" if linked else "Clear a relation of a row",
        {200: response("Done", obj({done: {"const": True}}), headers=_WRITTEN)},
        raises=(
            *_KEYED, errors.MissingField, errors.RelationNotFound, errors.NotFound,
            errors.EntityNotFound, errors.PolicyDenied, errors.InvalidValue,
            errors.NullNotAllowed, errors.FieldFixed, errors.ReadonlyField, errors.UniqueViolation,
            errors.PreconditionFailed, errors.RateLimited,
        ),
        parameters=[_KEY], body=body_schema(
            LinkBody if linked else UnlinkBody,
            {"entity": {"enum": [entity.name for entity in manifest.entities]}},
        ),
    )


def _action(action: DeclaredAction) -> dict[str, Any]:
    inputs = obj(
        {field.name: written(field) for field in action.input},
        [field.name for field in action.input if not field.optional],
    )
    return operation(
        "post", f"act_{action.name}", "actions",
        f"Check the caller and the inputs of {action.name}",
        {200: response("The caller is allowed, the inputs are complete", obj({
            "action": {"const": action.name}, "input": {"type": "object"},
            "executed": {"const": True},
        }))},
        raises=(
            *STORE_ERRORS, errors.PolicyDenied, errors.ActionNotFound,
            errors.ActionMissingInput, errors.InvalidValue,
        ),
        body=inputs,
    )


def _export(operation_id: str, entities: list[str]) -> dict[str, Any]:
    document = obj({
        "exported_at": _TEXT,
        "entities": obj({name: listed(ref(name)) for name in entities}),
        "counts": obj(dict.fromkeys(entities, _COUNT)),
    })
    described = response("The rows, streamed", document)
    described["content"][_LINES] = {"schema": _TEXT}
    return operation(
        "get", operation_id, "admin", "All rows, for admins",
        {200: described},
        raises=(*STORE_ERRORS, errors.Forbidden),
        parameters=[header("Accept", _TEXT, f"{_LINES}: a line for each row")],
        security=ADMIN_ONLY, has_head=False,
    )


def _import(manifest: Manifest) -> dict[str, Any]:
    counts = {"imported": _COUNT, "failed": _COUNT}
    result = obj(
        {
            **counts,
            "by_entity": listed(obj({"entity": _TEXT, "inserted": _COUNT, "failed": _COUNT})),
            "errors": listed({"type": "object"}),
        },
        (*counts, "by_entity"),
    )
    described = response("How many rows were imported, and the errors of the others", result)
    described["content"][_LINES] = {"schema": _TEXT}
    operations = operation(
        "post", "import", "admin", "Import rows as /api/export returns them, for admins",
        {200: described},
        raises=(
            *WRITE_ERRORS, errors.Forbidden, errors.MissingField, errors.InvalidQuery,
        ),
        parameters=[query(
            "ids", {"enum": ["keep", "new", ""]}, "new: every row gets a new id; default: keep"
        )],
        body=body_schema(ImportBody, {"entities": {
            "properties": {entity.name: listed({}) for entity in manifest.entities},
        }}),
        security=ADMIN_ONLY,
    )
    operations["post"]["requestBody"]["content"][_LINES] = {"schema": _TEXT}
    return operations
