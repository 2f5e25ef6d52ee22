"""The falcon app: routes, the gate, error answers.

`make_app` is called once in each HTTP worker, after the fork. Routing is falcon's, by the path as
it was sent (`routing`): segments are percent-decoded one by one, HEAD answers like GET without the
body, a known path with another method is 405 with Allow, an unknown path 404, and OPTIONS is
answered by the gate for any path.
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
from pylon.api.sync import documents, pull
from pylon.errors import PylonError


def make_app(services: Services) -> falcon.App[falcon.Request, falcon.Response]:
    """Build the WSGI app of one process."""
    router = CompiledRouter()
    app = falcon.App(middleware=[RequestMiddleware(services)], router=router)
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
    static_dir = services.app.config.static_dir
    if static_dir is not None:
        app.add_sink(StaticFiles(Path(static_dir)).serve, f"{PREFIX}(/|$)")
    return app


def _routes(services: Services) -> list[tuple[str, object]]:
    return [
        ("/health", system.Health(services)),
        ("/livez", system.Livez()),
        ("/readyz", system.Readyz(services)),
        ("/metrics", system.Metrics(services)),
        ("/api/manifest", system.ManifestDocument(services)),
        ("/api/openapi.json", openapi.OpenApi(services)),
        ("/api/client-config", system.ClientConfig(services)),
        ("/api/auth/guest", sessions.Guest(services)),
        ("/api/auth/anonymous", sessions.Anonymous(services)),
        ("/api/auth/me", sessions.Me(services)),
        ("/api/auth/session", sessions.Session(services)),
        ("/api/auth/refresh", sessions.Refresh(services)),
        ("/api/auth/providers", sessions.Providers()),
        ("/api/entities/{entity}", entities.EntityList(services)),
        ("/api/entities/{entity}/cursor", entities.EntityPage(services)),
        ("/api/entities/{entity}/{row_id}", entities.EntityRow(services)),
        ("/api/query", graph.GraphQuery(services)),
        ("/api/query/{entity}", query.EntityQuery(services)),
        ("/api/aggregate/{entity}", aggregate.EntityAggregate(services)),
        ("/api/search/{entity}", search.EntitySearch(services)),
        ("/api/lookup/{entity}/{field}/{value:path}", query.Lookup(services)),
        ("/api/batch", batch.Batch(services)),
        ("/api/transact", batch.Transaction(services)),
        ("/api/link", link.Link(services)),
        ("/api/unlink", link.Unlink(services)),
        ("/api/actions/{name}", actions.Action(services)),
        ("/api/export", export.Export(services)),
        ("/api/export/{entity}", export.Export(services)),
        ("/api/import", import_.Import(services)),
        (f"{documents.PREFIX}/{{entity}}/{{row_id}}", documents.DocumentPush(services)),
        ("/api/sync/pull", pull.Pull(services)),
        ("/api/sync/push", pull.Push(services)),
        ("/api/rooms", rooms.RoomList(services)),
        ("/api/rooms/join", rooms.join(services)),
        ("/api/rooms/leave", rooms.leave(services)),
        ("/api/rooms/presence", rooms.set_presence(services)),
        ("/api/rooms/broadcast", rooms.broadcast(services)),
        ("/api/rooms/{room:path}", rooms.Room(services)),
        ("/api/pubsub/publish", pubsub.PublishTo(services)),
        ("/api/pubsub/channels", pubsub.ChannelList(services)),
        ("/api/pubsub/history/{channel:path}", pubsub.History(services)),
        ("/api/shards", shards.ShardList(services)),
        ("/api/shards/{shard_id}", shards.OneShard(services)),
        ("/api/shards/{shard_id}/input", shards.ShardInput(services)),
        ("/api/shards/{shard_id}/move", shards.ShardMove(services)),
        ("/api/shards/{shard_id}/connect", shards.ShardConnect(services)),
        ("/api/matchmaking", matchmaking.Match(services)),
        ("/api/matchmaking/ack", matchmaking.MatchAck(services)),
        ("/api/sync/ws", system.SocketElsewhere(services)),
        ("/api/__test__/reset", reset.TestReset(services)),
    ]
