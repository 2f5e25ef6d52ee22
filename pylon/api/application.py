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

from pylon.api import (
    actions,
    aggregate,
    answers,
    auth,
    batch,
    crdt,
    entities,
    export,
    graph,
    import_,
    link,
    matchmaking,
    openapi,
    pubsub,
    query,
    reset,
    rooms,
    search,
    shards,
    sync,
    system,
)
from pylon.api.gate import Gate
from pylon.api.routing import SINK, EncodedSlashes
from pylon.api.services import Services
from pylon.api.static_files import PREFIX, StaticFiles
from pylon.errors import PylonError


def make_app(services: Services) -> falcon.App[falcon.Request, falcon.Response]:
    """Build the WSGI app of one process."""
    router = CompiledRouter()
    app = falcon.App(middleware=[Gate(services)], router=router)
    # Bodies are JSON whatever their content type says, and never form data (spec/http.md §3.0).
    app.req_options.auto_parse_form_urlencoded = False
    app.req_options.keep_blank_qs_values = True
    app.add_error_handler(Exception, answers.on_defect)
    app.add_error_handler(falcon.HTTPError, answers.on_falcon_error)
    app.add_error_handler(PylonError, answers.on_pylon_error)
    for path, resource in _routes(services):
        app.add_route(path, resource)
    app.add_sink(EncodedSlashes(router), SINK)
    app.add_sink(crdt.bad_path, f"{crdt.PREFIX}(/|$)")
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
        ("/api/auth/guest", auth.Guest(services)),
        ("/api/auth/anonymous", auth.Anonymous(services)),
        ("/api/auth/me", auth.Me(services)),
        ("/api/auth/session", auth.Session(services)),
        ("/api/auth/refresh", auth.Refresh(services)),
        ("/api/auth/providers", auth.Providers()),
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
        (f"{crdt.PREFIX}/{{entity}}/{{row_id}}", crdt.DocumentPush(services)),
        ("/api/sync/pull", sync.Pull(services)),
        ("/api/sync/push", sync.Push(services)),
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
