"""The start page of dev mode: what an app without a page has, at `/`.

It has the app's name, the step that comes next, the entities with a request to try, and links to
what the server has beside them. It needs no script; the one of the overlay reloads it when the app
changes.

Invariants: every name of the app and of the request is escaped. The headers allow one style, by its
digest, and scripts of this server only. No token is on the page. Bound: `limits.DEV_ENTITIES`
entities. Called by `pylon.api.home`.
"""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from typing import Final

import falcon

from pylon import limits
from pylon.api.dev.overlay import Overlay
from pylon.api.http.addresses import url_of
from pylon.api.http.static_files import APP_PATH, DOCS_PATH
from pylon.api.identity.routes import PAGES
from pylon.api.services import AdminServices
from pylon.app_manifest import app_file
from pylon.manifest.model import Entity
from pylon.pages import SITE

_HTML: Final = "text/html; charset=utf-8"
_STYLE: Final = """
:root{color-scheme:light dark;--text:#1a1a1a;--quiet:#5f5f5f;--ground:#ffffff;--box:#f2f2f2;
--link:#0b57d0;--line:#d5d5d5}
@media (prefers-color-scheme:dark){:root{--text:#f0f0f0;--quiet:#b5b5b5;--ground:#161616;
--box:#262626;--link:#9ecaff;--line:#444444}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{width:min(52rem,100%);margin:0 auto;padding:1.5rem 1rem 3rem}
h1{margin:0;font-size:1.75rem;overflow-wrap:anywhere}
h2{margin:2rem 0 .5rem;padding-top:1.5rem;font-size:1.15rem;border-top:1px solid var(--line)}
h3{margin:1.25rem 0 0;font-size:1rem;overflow-wrap:anywhere}
p{margin:.5rem 0;overflow-wrap:anywhere}
small,dd{color:var(--quiet)}
code,pre{font:.875rem/1.5 ui-monospace,monospace}
code{overflow-wrap:anywhere}
pre{margin:.5rem 0;padding:.75rem;border-radius:.4rem;background:var(--box);white-space:pre-wrap;
overflow-wrap:anywhere}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
dl{margin:0;display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.35rem 1rem}
dd{margin:0}
@media (max-width:480px){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}
"""
_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


class StartPage:
    """Makes the page of an app."""

    def __init__(self, services: AdminServices, overlay: Overlay) -> None:
        self._config = services.app.config
        self._manifest = services.app.manifest
        self._overlay = overlay

    def send(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the page."""
        resp.content_type = _HTML
        resp.set_header("content-security-policy", _POLICY)
        base = (url_of(self._config, "http", req) or "").rstrip("/")
        name = html.escape(self._manifest.name)
        resp.data = self._overlay.add_script((
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{name}</title><style>{_STYLE}</style></head><body><main>"
            f"<h1>{name}</h1><p>Version {html.escape(self._manifest.version)}, in dev mode.</p>"
            f"{self._next_step()}{self._entities(base)}{self._links()}"
            "</main></body></html>\n"
        ).encode())

    def _next_step(self) -> str:
        if self._config.static_dir is None:
            step = (
                "This app has no page yet. Put an <code>index.html</code> into a folder, and name "
                "the folder in <code>.env</code>:</p><pre>PYLON_STATIC_DIR=public</pre><p>"
            )
        else:
            index = html.escape(str(Path(self._config.static_dir) / "index.html"))
            step = f"This app has no page yet. Save one as <code>{index}</code>: "
        return (
            f"<h2>The next step</h2><p>{step}it is then at <code>{APP_PATH}/</code>, and "
            "<code>/</code> leads there. This is a whole page:</p><pre>"
            + html.escape(self._sample()) +
            f"</pre><p>Change <code>{html.escape(app_file(self._config))}</code> and save it: the "
            "server takes it over, and this page reloads.</p>"
        )

    def _sample(self) -> str:
        entity = self._manifest.entities[0].name if self._manifest.entities else "Note"
        return (
            f'<!doctype html>\n<title>{entity}</title>\n<pre id="rows"></pre>\n'
            '<script type="module">\nimport { pylon } from "/client/pylon.js";\n\n'
            'const box = document.getElementById("rows");\n'
            "const app = pylon();\nawait app.auth.guest();\n"
            f'app.live("{entity}", {{ limit: 50 }})\n  .subscribe(({{ rows }}) => {{\n'
            "    box.textContent = JSON.stringify(rows);\n  });\n</script>\n"
        )

    def _entities(self, base: str) -> str:
        shown = self._manifest.entities[:limits.DEV_ENTITIES]
        rest = len(self._manifest.entities) - len(shown)
        parts = ["<h2>Entities</h2>"]
        if shown:
            parts.append(
                "<p>The admin token is <code>PYLON_ADMIN_TOKEN</code> of <code>.env</code>; "
                "<code>. ./.env</code> gives it to a shell. Without it the policies decide.</p>"
            )
        else:
            parts.append("<p>The manifest declares none yet.</p>")
        parts += [_entity_html(entity, base) for entity in shown]
        if rest > 0:
            parts.append(f'<p>And {rest} more, in <a href="/api/manifest">/api/manifest</a>.</p>')
        return "".join(parts)

    def _links(self) -> str:
        docs = (
            _link(f"{DOCS_PATH}/", "the documentation") if SITE.is_dir()
            else "<dt><code>pylonctl docs</code></dt><dd>the documentation, in a terminal; "
            "<code>pylonctl docs start</code> is the first hour</dd>"
        )
        sign_in = _link(PAGES, "forms to sign in") if self._config.auth_page else ""
        return (
            "<h2>What this server has</h2><dl>" + docs + sign_in
            + _link("/api/openapi.json", "every route, as OpenAPI")
            + _link("/api/manifest", "the manifest, without the rules of its policies")
            + _link("/client/pylon.js", "the JavaScript client")
            + _link("/metrics", "the metrics of all processes")
            + _link("/readyz", "whether the server is ready, and if not, why")
            + "</dl>"
        )


def _entity_html(entity: Entity, base: str) -> str:
    fields = ", ".join(f.name for f in entity.fields)
    curl = f'curl -H "Authorization: Bearer $PYLON_ADMIN_TOKEN" {base}/api/entities/{entity.name}'
    return (
        f"<h3>{html.escape(entity.name)}</h3><p><small>id, {html.escape(fields)}</small></p>"
        f"<pre>{html.escape(curl)}</pre>"
    )


def _link(path: str, text: str) -> str:
    return f'<dt><a href="{path}">{path}</a></dt><dd>{text}</dd>'
