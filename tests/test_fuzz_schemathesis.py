"""A served app is fuzzed against its own OpenAPI document: every answer is as described.

Schemathesis makes requests that fit the document and requests that do not. For each answer:
no 500, a documented status and content type, the documented headers and schema; what does not
fit is refused, with a documented code. Examples are few and derandomized, so that a run is the
same everywhere and short; `PYLON_FUZZ_EXAMPLES` makes it a longer one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis import checks as chk
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wide_app import SMALL, wide_app

EXAMPLES: Final = int(os.environ.get("PYLON_FUZZ_EXAMPLES", "4"))
OPEN = {
    "PYLON_DEV_MODE": "true", "PYLON_CORS_ORIGIN": "*",
    "PYLON_JWT_SECRET": "0123456789abcdef" * 4,  # else there are no JWTs: 501, as described
}
ALWAYS = [
    chk.not_a_server_error, chk.status_code_conformance, chk.content_type_conformance,
    chk.response_headers_conformance, chk.response_schema_conformance,
]
# What is wrong with one entry of these is in the entry's own outcome, and the status is 200.
EACH_BY_ITSELF = {"POST /api/sync/push", "POST /api/batch"}
# Another version of tus gets 412 before anything else is looked at, as its protocol says.
OF_TUS = {
    "POST /api/files/tus", "GET /api/files/tus/{file_id}", "PATCH /api/files/tus/{file_id}",
    "DELETE /api/files/tus/{file_id}",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    app = {**wide_app(), "auth": {"org": {}}}  # else the page of an invite is a 501, as described
    server = PylonServer(folder, app, {**SMALL, **OPEN})
    try:
        yield server.start()
    finally:
        server.close()


def shown(problem: BaseException) -> str:
    """A failed check in full; of a group, all that is in it."""
    inner = getattr(problem, "exceptions", ())
    return "\n".join([str(problem)[:2_000], *(str(ex)[:2_000] for ex in inner)])


def fuzz(
    server: PylonServer, mode: GenerationMode, checks: list[Any], headers: dict[str, str],
    examples: int = EXAMPLES,
) -> int:
    """Send `examples` requests of every operation; gives the number of requests."""
    status, document, _ = server.request("GET", "/api/openapi.json")
    assert status == 200
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{server.port}")
    sent = 0
    problems = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "head":
            continue  # refused where GET is
        if mode is GenerationMode.NEGATIVE and not operation.body and not list(
            operation.iter_parameters()
        ):
            continue  # nothing of it can be wrong

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Case) -> None:
            nonlocal sent
            sent += 1
            answer = case.call(headers=headers, timeout=30)
            rules = checks if case.operation.label not in EACH_BY_ITSELF | OF_TUS else ALWAYS
            case.validate_response(answer, checks=rules, headers=headers)

        try:
            one()
        except Unsatisfiable:
            continue  # any text is right there
        except (FailureGroup, AssertionError) as ex:  # every operation is tried
            problems.append(f"{operation.label}: {shown(ex)}")
    assert problems == [], "\n\n".join(problems)
    return sent


@pytest.mark.parametrize("who", ["admin", "anybody"])
def test_requests_as_described_are_answered_as_described(served: PylonServer, who: str) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"} if who == "admin" else {}
    examples = EXAMPLES if who == "admin" else max(2, EXAMPLES // 2)
    assert fuzz(served, GenerationMode.POSITIVE, ALWAYS, headers, examples) > 100
    assert served.request("GET", "/readyz")[0] == 200


def test_other_requests_are_refused_as_described(served: PylonServer) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    checks = [*ALWAYS, chk.negative_data_rejection]
    assert fuzz(served, GenerationMode.NEGATIVE, checks, headers, max(2, EXAMPLES // 2)) > 50
    assert served.request("GET", "/readyz")[0] == 200
