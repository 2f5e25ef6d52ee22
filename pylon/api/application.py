"""The falcon app: routes, middleware, error responses.

`make_app` builds it once, in the template process, for all HTTP workers. PERF: each worker copied
4.3 MiB of pages when it built the app itself. falcon routes a request by the path
as the client sent it (`routing`) and decodes the segments one by one. HEAD is like GET without
the body. A known path with another method is 405 with Allow, an unknown path 404. The middleware
answers OPTIONS for any path.

A new route is one line in `_routes`.
"""

from __future__ import annotations

from pathlib import Path

import falcon
from falcon.routing import CompiledRouter

from pylon.api.admin import openapi, reset, system
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
from pylon.api.http import responses
from pylon.api.http.middleware import RequestMiddleware
from pylon.api.http.routing import SINK, EncodedSlashes
from pylon.api.http.static_files import PREFIX, StaticFiles
from pylon.api.identity import sessions
from pylon.api.realtime import matchmaking, pubsub, rooms, shards
from pylon.api.services import Services
from pylon.api.sync import documents, pull, push
from pylon.errors import PylonError


def make_app(services: Services) -> falcon.App[falcon.Request, falcon.Response]:
    """Build the WSGI app. It serves once its services are connected."""
    router = CompiledRouter()
    app = falcon.App(middleware=[RequestMiddleware(services.requests)], router=router)
    # Bodies are JSON whatever their content type says, and never form data (spec/http.md §3.0).
    app.req_options.auto_parse_form_urlencoded = False
    app.req_options.keep_blank_qs_values = True
    app.add_error_handler(Exception, responses.on_defect)
    app.add_error_handler(falcon.HTTPError, responses.on_falcon_error)
    app.add_error_handler(PylonError, responses.on_pylon_error)
    for path, resource in _routes(services):
        app.add_route(path, resource)
    app.add_sink(EncodedSlashes(router), SINK)
    app.add_sink(documents.bad_path, f"{documents.PREFIX}(/|$)")
    static_dir = services.requests.app.config.static_dir
    if static_dir is not None:
        app.add_sink(StaticFiles(Path(static_dir)).serve, f"{PREFIX}(/|$)")
    return app


def _routes(services: Services) -> list[tuple[str, object]]:
    """Return the resource of each path, in falcon's notation."""
    data, sync, realtime = services.data, services.sync, services.realtime
    identity, admin = services.identity, services.admin
    return [
        ("/health", system.Health(admin)),
        ("/livez", system.Livez()),
        ("/readyz", system.Readyz(admin)),
        ("/metrics", system.Metrics(admin)),
        ("/api/manifest", system.ManifestDocument(admin)),
        ("/api/openapi.json", openapi.OpenApi(admin)),
        ("/api/client-config", system.ClientConfig(admin)),
        ("/api/auth/guest", sessions.Guest(identity)),
        ("/api/auth/anonymous", sessions.Anonymous(identity)),
        ("/api/auth/me", sessions.Me(identity)),
        ("/api/auth/session", sessions.Session(identity)),
        ("/api/auth/refresh", sessions.Refresh(identity)),
        ("/api/auth/providers", sessions.Providers()),
        ("/api/entities/{entity}", entities.EntityList(data)),
        ("/api/entities/{entity}/cursor", entities.EntityPage(data)),
        ("/api/entities/{entity}/{row_id}", entities.EntityRow(data)),
        ("/api/query", graph.GraphQuery(data)),
        ("/api/query/{entity}", query.EntityQuery(data)),
        ("/api/aggregate/{entity}", aggregate.EntityAggregate(data)),
        ("/api/search/{entity}", search.EntitySearch(data)),
        ("/api/lookup/{entity}/{field}/{value:path}", query.Lookup(data)),
        ("/api/batch", batch.Batch(data)),
        ("/api/transact", batch.Transaction(data)),
        ("/api/link", link.Link(data)),
        ("/api/unlink", link.Unlink(data)),
        ("/api/actions/{name}", actions.Action(data)),
        ("/api/export", export.Export(data)),
        ("/api/export/{entity}", export.Export(data)),
        ("/api/import", import_.Import(data)),
        (
            f"{documents.PREFIX}/{{entity}}/{{row_id}}",
            documents.DocumentPush(data, sync),
        ),
        ("/api/sync/pull", pull.Pull(data, sync)),
        ("/api/sync/push", push.Push(data)),
        ("/api/rooms", rooms.RoomList(realtime)),
        ("/api/rooms/join", rooms.join(realtime)),
        ("/api/rooms/leave", rooms.leave(realtime)),
        ("/api/rooms/presence", rooms.set_presence(realtime)),
        ("/api/rooms/broadcast", rooms.broadcast(realtime)),
        ("/api/rooms/{room:path}", rooms.Room(realtime)),
        ("/api/pubsub/publish", pubsub.ChannelPublish(realtime)),
        ("/api/pubsub/channels", pubsub.ChannelList(realtime)),
        ("/api/pubsub/history/{channel:path}", pubsub.ChannelHistory(realtime)),
        ("/api/shards", shards.ShardList(realtime)),
        ("/api/shards/{shard_id}", shards.ShardDetail(realtime)),
        ("/api/shards/{shard_id}/input", shards.ShardInput(realtime)),
        ("/api/shards/{shard_id}/move", shards.ShardMove(realtime)),
        ("/api/shards/{shard_id}/connect", shards.ShardConnect(realtime)),
        ("/api/matchmaking", matchmaking.Match(realtime)),
        ("/api/matchmaking/ack", matchmaking.MatchAck(realtime)),
        ("/api/sync/ws", system.SyncSocket(admin)),
        ("/api/__test__/reset", reset.TestReset(admin)),
    ]
