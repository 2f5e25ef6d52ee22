"""The falcon app: routes, middleware, error responses.

`make_app` builds it once, in the template process, for all HTTP workers. PERF: each worker copied
4.3 MiB of pages when it built the app itself. falcon routes a request by the path
as the client sent it (`routing`) and decodes the segments one by one. HEAD is like GET without
the body. A known path with another method is 405 with Allow, an unknown path 404. The middleware
answers OPTIONS for any path.

`/` and the routes of dev mode exist only where they have something to show (`_page_routes`).

A new route is one line in `_routes`, with what an API key needs for each of its methods. A route of
sign-in is a line of `pylon.api.identity.routes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import falcon
from falcon.routing import CompiledRouter

from pylon.api import client_files, home
from pylon.api.admin import openapi, reset, system
from pylon.api.admin import sessions as admin_sessions
from pylon.api.data import (
    actions,
    aggregate,
    batch,
    entities,
    export,
    graph,
    import_,
    link,
    query,
    search,
)
from pylon.api.dev.overlay import Overlay, dev_routes
from pylon.api.dev.start_page import StartPage
from pylon.api.files import listing, staged, tus, upload
from pylon.api.http import responses
from pylon.api.http import route_access as access
from pylon.api.http.middleware import RequestMiddleware
from pylon.api.http.route_access import Methods, RouteAccess
from pylon.api.http.routing import SINK, EncodedSlashes
from pylon.api.http.static_files import APP_PATH, DOCS_PATH, StaticFiles
from pylon.api.identity import refresh, session_list, sessions
from pylon.api.identity.forwarding import identity_resources
from pylon.api.identity.sign_in_page import sign_in_pages
from pylon.api.realtime import matchmaking, pubsub, rooms, shards
from pylon.api.services import Services
from pylon.api.sync import documents, pull, push
from pylon.errors import PylonError
from pylon.pages import SITE


def make_app(services: Services) -> falcon.App[falcon.Request, falcon.Response]:
    """Build the WSGI app. It serves once its services are connected."""
    router = CompiledRouter()
    declared = RouteAccess(services.requests)
    app = falcon.App(middleware=[RequestMiddleware(services.requests, declared)], router=router)
    # Bodies are JSON whatever their content type says, and never form data (spec/http.md §3.0).
    app.req_options.auto_parse_form_urlencoded = False
    app.req_options.keep_blank_qs_values = True
    app.add_error_handler(Exception, responses.on_defect)
    app.add_error_handler(falcon.HTTPError, responses.on_falcon_error)
    app.add_error_handler(PylonError, responses.on_pylon_error)
    config = services.requests.app.config
    overlay = Overlay(services.admin) if config.dev_mode else None
    files = None
    if config.static_dir is not None:
        change_page = None if overlay is None else overlay.add_script
        files = StaticFiles(APP_PATH, Path(config.static_dir), change_page)
    for path, resource, allowed in (*_routes(services), *_page_routes(services, files, overlay)):
        declared.declare(path, resource, allowed)
        app.add_route(path, resource)
    app.add_sink(EncodedSlashes(router, declared), SINK)
    app.add_sink(documents.bad_path, f"{documents.PREFIX}(/|$)")
    if files is not None:
        app.add_sink(files.serve, f"{APP_PATH}(/|$)")
    if config.dev_mode and SITE.is_dir():
        app.add_sink(StaticFiles(DOCS_PATH, SITE).serve, f"{DOCS_PATH}(/|$)")
    # PERF: the first look-up compiles the router. Here it does so once for all workers: 6 ms each.
    router.find("/")
    return app


def _page_routes(
    services: Services, files: StaticFiles | None, overlay: Overlay | None
) -> Iterable[tuple[str, object, Methods]]:
    """Yield the routes that depend on PYLON_STATIC_DIR, and those of dev mode, as `_routes` does.
    """
    send_start_page = None
    if overlay is not None:
        yield from dev_routes(overlay, services.admin)
        send_start_page = StartPage(services.admin, overlay).send
    if files is not None or overlay is not None:
        yield home.PATH, home.Home(files, send_start_page), {"GET": access.OPEN}


def _routes(services: Services) -> list[tuple[str, object, Methods]]:
    """Return the resource of each path, in falcon's notation, and who may call its methods."""
    data, sync, realtime = services.data, services.sync, services.realtime
    identity, admin, files = services.identity, services.admin, services.files
    return [
        ("/health", system.Health(admin), {"GET": access.OPEN}),
        ("/livez", system.Livez(), {"GET": access.OPEN}),
        ("/readyz", system.Readyz(admin), {"GET": access.OPEN}),
        ("/metrics", system.Metrics(admin), {"GET": access.OPEN}),
        ("/api/manifest", system.ManifestDocument(admin), {"GET": access.OPEN}),
        ("/api/openapi.json", openapi.OpenApi(admin), {"GET": access.OPEN}),
        ("/api/client-config", system.ClientConfig(admin), {"GET": access.OPEN}),
        (f"{client_files.PREFIX}/{{path:path}}", client_files.ClientFiles(), {"GET": access.OPEN}),
        ("/api/auth/guest", sessions.Guest(identity), {"POST": access.SESSION_WRITE}),
        ("/api/auth/anonymous", sessions.Anonymous(identity), {"POST": access.SESSION_WRITE}),
        ("/api/auth/me", sessions.Me(identity), {"GET": access.OPEN}),
        (
            "/api/auth/session", sessions.Session(identity),
            {
                "GET": access.SESSION_READ, "POST": access.SESSION_WRITE,
                "DELETE": access.SESSION_WRITE,
            },
        ),
        ("/api/auth/refresh", refresh.Refresh(identity), {"POST": access.SESSION_WRITE}),
        (
            "/api/auth/sessions", session_list.SessionList(identity),
            {"GET": access.OPEN, "DELETE": access.SESSION_WRITE},
        ),
        (
            "/api/auth/sessions/{session_id}", session_list.OneSession(identity),
            {"DELETE": access.SESSION_WRITE},
        ),
        (
            "/api/admin/auth/sessions", admin_sessions.AdminSessions(identity),
            {"GET": access.ADMIN_READ},
        ),
        (
            "/api/admin/auth/sessions/{session_id}", admin_sessions.OneAdminSession(identity),
            {"DELETE": access.ADMIN_WRITE},
        ),
        (
            "/api/admin/sessions/purge", admin_sessions.SessionPurge(identity),
            {"POST": access.ADMIN_WRITE},
        ),
        *identity_resources(identity),
        *sign_in_pages(identity),
        (
            "/api/entities/{entity}", entities.EntityList(data),
            {"GET": access.ROWS_READ, "POST": access.ROWS_WRITE},
        ),
        ("/api/entities/{entity}/cursor", entities.EntityPage(data), {"GET": access.ROWS_READ}),
        (
            "/api/entities/{entity}/{row_id}", entities.EntityRow(data),
            {"GET": access.ROWS_READ, "PATCH": access.ROWS_WRITE, "DELETE": access.ROWS_DELETE},
        ),
        ("/api/query", graph.GraphQuery(data), {"POST": access.BODY_READ}),
        ("/api/query/{entity}", query.EntityQuery(data), {"POST": access.ROWS_READ}),
        ("/api/aggregate/{entity}", aggregate.EntityAggregate(data), {"POST": access.ROWS_READ}),
        ("/api/search/{entity}", search.EntitySearch(data), {"POST": access.ROWS_READ}),
        (
            "/api/lookup/{entity}/{field}/{value:path}", query.Lookup(data),
            {"GET": access.ROWS_READ},
        ),
        ("/api/batch", batch.Batch(data), {"POST": access.BODY_WRITE}),
        ("/api/transact", batch.Transaction(data), {"POST": access.BODY_WRITE}),
        ("/api/link", link.Link(data), {"POST": access.BODY_WRITE}),
        ("/api/unlink", link.Unlink(data), {"POST": access.BODY_WRITE}),
        ("/api/actions/{name}", actions.Action(data), {"POST": access.ACTION}),
        ("/api/export", export.Export(data), {"GET": access.ADMIN_READ}),
        ("/api/export/{entity}", export.Export(data), {"GET": access.ADMIN_READ}),
        ("/api/import", import_.Import(data), {"POST": access.ADMIN_WRITE}),
        (
            f"{documents.PREFIX}/{{entity}}/{{row_id}}", documents.DocumentPush(data, sync),
            {"POST": access.ROWS_WRITE},
        ),
        (
            "/api/sync/pull", pull.Pull(data, sync),
            {"GET": access.SYNC_READ, "POST": access.SYNC_READ},
        ),
        ("/api/sync/push", push.Push(data), {"POST": access.SYNC_WRITE}),
        ("/api/rooms", rooms.RoomList(realtime), {"GET": access.ROOMS_READ}),
        (
            "/api/rooms/join", rooms.join(realtime),
            {"GET": access.ROOMS_READ, "POST": access.ROOMS_WRITE},
        ),
        (
            "/api/rooms/leave", rooms.leave(realtime),
            {"GET": access.ROOMS_READ, "POST": access.ROOMS_WRITE},
        ),
        (
            "/api/rooms/presence", rooms.set_presence(realtime),
            {"GET": access.ROOMS_READ, "POST": access.ROOMS_WRITE},
        ),
        (
            "/api/rooms/broadcast", rooms.broadcast(realtime),
            {"GET": access.ROOMS_READ, "POST": access.ROOMS_WRITE},
        ),
        ("/api/rooms/{room:path}", rooms.Room(realtime), {"GET": access.ROOMS_READ}),
        ("/api/pubsub/publish", pubsub.ChannelPublish(realtime), {"POST": access.ADMIN_WRITE}),
        ("/api/pubsub/channels", pubsub.ChannelList(realtime), {"GET": access.ADMIN_READ}),
        (
            "/api/pubsub/history/{channel:path}", pubsub.ChannelHistory(realtime),
            {"GET": access.ADMIN_READ},
        ),
        (
            "/api/shards", shards.ShardList(realtime),
            {"GET": access.ADMIN_READ, "POST": access.ADMIN_WRITE},
        ),
        (
            "/api/shards/{shard_id}", shards.ShardDetail(realtime),
            {"GET": access.SHARDS_READ, "DELETE": access.ADMIN_WRITE},
        ),
        (
            "/api/shards/{shard_id}/input", shards.ShardInput(realtime),
            {"POST": access.SHARDS_WRITE},
        ),
        ("/api/shards/{shard_id}/move", shards.ShardMove(realtime), {"POST": access.ADMIN_WRITE}),
        (
            "/api/shards/{shard_id}/connect", shards.ShardConnect(realtime),
            {"GET": access.SHARDS_READ},
        ),
        (
            "/api/matchmaking", matchmaking.Match(realtime),
            {"GET": access.SHARDS_READ, "POST": access.SHARDS_WRITE, "DELETE": access.SHARDS_WRITE},
        ),
        ("/api/matchmaking/ack", matchmaking.MatchAck(realtime), {"POST": access.SHARDS_WRITE}),
        ("/api/files", listing.FileList(files), {"GET": access.FILES_READ}),
        ("/api/files/upload", upload.Upload(files), {"POST": access.FILES_WRITE}),
        ("/api/files/init", staged.Init(files), {"POST": access.FILES_WRITE}),
        ("/api/files/confirm", staged.Confirm(files), {"POST": access.FILES_WRITE}),
        (
            f"{staged.UPLOADS}/{{file_id}}", staged.StagedBytes(files),
            {"PUT": access.FILES_WRITE},
        ),
        (tus.TUS, tus.Uploads(files), {"POST": access.FILES_WRITE}),
        (
            f"{tus.TUS}/{{file_id}}", tus.OneUpload(files),
            {
                "GET": access.FILES_READ, "PATCH": access.FILES_WRITE,
                "DELETE": access.FILES_WRITE,
            },
        ),
        (
            "/api/files/{file_id}", listing.OneFile(files),
            {
                "GET": access.FILES_READ, "PATCH": access.FILES_WRITE,
                "DELETE": access.FILES_WRITE,
            },
        ),
        ("/api/files/{file_id}/sign", listing.FileLink(files), {"POST": access.FILES_READ}),
        ("/api/sync/ws", system.SyncSocket(admin), {"GET": access.OPEN}),
        ("/api/__test__/reset", reset.TestReset(admin), {"POST": access.ADMIN_WRITE}),
    ]
