"""Unknown query parameters: refused in dev mode with the nearest name, counted in production."""

from __future__ import annotations

from pathlib import Path

import pytest
from falcon.routing import CompiledRouter

from pylon import metrics
from pylon.api.application import make_app
from pylon.api.http.parameters import KNOWN
from pylon.openapi.document import openapi_document
from tests.support.api import ADMIN_TOKEN, serve_api
from tests.support.manifests import notes_app

pytestmark = pytest.mark.stores


def counted(route: str) -> float:
    return metrics.HTTP_UNKNOWN_PARAMETERS.labels(route)._value.get()


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("/api/entities/Note?limit=1&pages=2", 'parameter "pages" (known: limit,',
         "did you mean page?"),
        ("/api/sync/pull?sinc=0", 'parameter "sinc" (known: entities, since,',
         "did you mean since?"),
        ("/api/auth/me?x=", 'parameter "x" (known: none)', "leave it out; production ignores it"),
        ("/api/entities/Note/1?limit=1", 'parameter "limit" (known: none)', "leave it out"),
    ],
)
def test_dev_mode_refuses_it_and_names_the_nearest(
    tmp_path: Path, target: str, message: str, hint: str
) -> None:
    with serve_api(tmp_path, notes_app(), {"PYLON_DEV_MODE": "true"}) as api:
        answer = api.call("GET", target, token=ADMIN_TOKEN)
        assert answer.status_code == 400
        assert answer.json["error"]["code"] == "UNKNOWN_PARAMETER"
        assert message in answer.json["error"]["message"]
        assert answer.json["error"]["hint"].startswith(hint)


def test_dev_mode_takes_the_known_ones_and_other_paths_take_all(tmp_path: Path) -> None:
    with serve_api(tmp_path, notes_app(), {"PYLON_DEV_MODE": "true"}) as api:
        for target in (
            "/api/entities/Note?limit=1&offset=0&count=true",
            "/api/entities/Note?page=1&per_page=2",
            "/api/entities/Note/cursor?after=&limit=1", "/api/sync/pull?since=0&entities=Note",
            "/api/manifest?full=1", "/livez?x=1",
        ):
            assert api.call("GET", target, token=ADMIN_TOKEN).status_code == 200, target
        assert api.call("GET", "/api/none?x=1").status_code == 404


def test_production_ignores_and_counts_it(tmp_path: Path) -> None:
    with serve_api(tmp_path, notes_app()) as api:
        route = "/api/entities/{entity}"
        before = counted(route)
        answer = api.call("GET", "/api/entities/Note?pges=2&x=3", token=ADMIN_TOKEN)
        assert answer.status_code == 200
        assert counted(route) == before + 1
        api.call("GET", "/api/entities/Note?limit=2", token=ADMIN_TOKEN)
        assert counted(route) == before + 1


def test_the_document_describes_exactly_the_known_parameters(tmp_path: Path) -> None:
    with serve_api(tmp_path, notes_app()) as api:
        app = api.services.requests.app
        document = openapi_document(app.manifest, app.config)
        router = make_app(api.services)._router
        assert isinstance(router, CompiledRouter)
        described: dict[str, set[str]] = {}
        for path, operations in document["paths"].items():
            found = router.find(path)
            if found is None:
                continue
            names = described.setdefault(found[3], set())
            for each in (operations, *operations.values()):
                parameters = each.get("parameters", []) if isinstance(each, dict) else []
                names |= {p["name"] for p in parameters if p.get("in") == "query"}
    assert {route: names for route, names in described.items() if names} == {
        route: set(names) for route, names in KNOWN.items()
    }
