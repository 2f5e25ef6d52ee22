"""Every fixed limit in one place (design.md §10). What an operator may set is in `config`.

Each has an error that names it, or a policy when full and a metric; both are described in
docs/limits.md.
"""

from typing import Final

BODY_BYTES: Final = 10 * 1024 * 1024
JSON_DEPTH: Final = 64
CURSOR_PAGE_DEFAULT: Final = 20
CURSOR_PAGE_MAX: Final = 100
FILTER_TERMS: Final = 64
FILTER_DEPTH: Final = 8  # $or and $and within each other
FILTER_VALUES: Final = 10_000  # of one $in or $nin
LIKE_CHARS: Final = 10_000  # SQLite refuses patterns above 50,000 bytes
SEARCH_CHARS: Final = 1_000  # of a text to search for
SEARCH_WORDS: Final = 32
SEARCH_PAGE_DEFAULT: Final = 20
SEARCH_PAGE_MAX: Final = 100
FACET_VALUES: Final = 1_000  # counted values that are answered for each facet
GRAPH_DEPTH: Final = 4
GRAPH_NODES: Final = 32  # entities and includes of one graph query
GRAPH_ROWS: Final = 20_000  # of one graph query, to-one rows not counted
GRAPH_BYTES: Final = 32 * 1024 * 1024  # of included rows, on each level that they are on
AGGREGATE_TERMS: Final = 64
AGGREGATE_GROUPS: Final = 10_000
READ_CLAUSES_KEPT: Final = 1_024  # read policies as SQL, for so many callers of each entity
POLICY_DEPTH: Final = 64
POLICY_CHARS: Final = 16_384  # one expression
MANIFEST_BYTES: Final = 8 * 1024 * 1024
PULL_PAGE_EVENTS: Final = 1_000
SNAPSHOT_PAGE_ROWS: Final = 1_000
PUSH_CHANGES: Final = 1_000
BATCH_OPS: Final = 1_000
TRANSACT_OPS: Final = 1_000
APP_TRIAL_S: Final = 60.0  # for the import of PYLON_APP before a start
SHARD_ID_CHARS: Final = 200
SHARDS: Final = 20_000  # running or just stopped, each shards worker
SHARDS_OF_USER: Final = 100  # of them, that subscribers of one identity brought into being
SHARDS_OF_ADDRESS: Final = 2_000  # likewise, of one network address
SHARD_SEAT_TOKENS: Final = 200_000  # each shards worker
SHARD_KEPT_S: Final = 60.0  # how long a shard that stopped is listed, and not made again
CALLS_IN_FLIGHT: Final = 1_024  # each caller, and each port
CALL_TIMEOUT_S: Final = 10.0
BUS_CALLS_HWM: Final = 10_000
SHARD_SID_CHARS: Final = 200
SHARD_INPUT_BYTES: Final = 65_536
SHARD_PARAMS_BYTES: Final = 262_144  # as JSON
SHARD_STATE_BYTES: Final = 8 * 1024 * 1024  # of a saved shard
SHARD_RECORDINGS: Final = 1_000  # files kept; the oldest goes first
SHARD_SAVE_RETRY_S: Final = 1.0  # until a state that the writer did not take is sent again
TRACEBACK_CHARS: Final = 16_384  # of a simulation that failed
MATCH_CRITERIA_BYTES: Final = 4_096  # as JSON
MATCH_TICKETS: Final = 100_000  # players who wait for a match
MATCH_GROUP: Final = 1_000  # of one match
ROW_ID_CHARS: Final = 200  # of an imported row; ids made here have 40
IMPORT_ERRORS: Final = 20  # told of in full; the others are counted

WRITES_IN_FLIGHT: Final = 1_024  # each worker process; more: 503 WRITE_QUEUE_FULL
WRITE_TIMEOUT_S: Final = 30.0
BATCH_REQUESTS: Final = 1_000
BATCH_BYTES: Final = 8 * 1024 * 1024
BATCH_S: Final = 0.005

READ_CONNECTIONS: Final = 4  # each worker process
SLOW_STATEMENTS: Final = 1_024  # known to need the thread pool, each worker process
LIST_BYTES: Final = 32 * 1024 * 1024  # of the rows of one list, query or graph
ANSWERS_BYTES: Final = 2 * 1024 * 1024  # remembered until the next commit, of each kind
READ_TIMEOUT_S: Final = 10.0  # one statement; more: 503 QUERY_TIMEOUT

TAIL_EVENTS: Final = 3_000
ASIDE_BYTES: Final = 1024 * 1024  # of changes that a hub without connections has not read
TAIL_BYTES: Final = 32 * 1024 * 1024
REPLAY_WITHOUT_NOTE_EVENTS: Final = 200
NOTE_TTL_S: Final = 60.0  # a pull's cursor is remembered this long, at the least
NOTES: Final = 100_000
LOG_MIN_AGE_S: Final = 120  # retention never takes what is younger (must exceed NOTE_TTL_S)
OP_IDS_KEPT: Final = 100_000
OP_ID_CHARS: Final = 200

CALLER_S: Final = 0.9  # a request's credentials are looked up again after this
CALLERS: Final = 10_000  # whose credentials are remembered, each worker process

TURN_EVENTS: Final = 500  # that a hub hands to a socket in one write; the next turn has the rest
TURN_BYTES: Final = 256 * 1024  # of row images in them, about
TURN_S: Final = 0.002  # while changes keep coming, they are gathered this long
OUTBOX_BYTES: Final = 1024 * 1024
OUTBOX_FRAMES: Final = 1_000
DEFLATE_MIN_BYTES: Final = 512  # smaller frames are sent as they are
SOCKET_PING_S: Final = 25.0
HEARTBEATS_PER_S: Final = 1_000  # each worker; with more sockets than that, less often
SSE_KEEPALIVE_S: Final = 15.0
PASSED_BYTES: Final = 160 * 1024  # read of a connection that another process goes on with
SOCKETS_PENDING: Final = 2_048  # without a complete request, each worker process
SOCKET_HEADER_S: Final = 10.0  # from accept to the end of the request's headers
SOCKET_CLOSE_S: Final = 2.0  # for the outbox to empty and the peer to answer a close
REPLAY_PAGE_EVENTS: Final = 100
REPLAY_SHARED_BYTES: Final = 16 * 1024 * 1024  # what clients that come back together share
TAIL_PRIMED_EVENTS: Final = 1_000  # of the log, that a new hub begins its tail with
HEAD_CHECK_S: Final = 5.0  # a hub that heard nothing this long asks the log
NOTES_WAIT_S: Final = 0.5  # a new hub waits this long for cursor notes
HTTP_REQUEST_S: Final = 30.0
HTTP_HEAD_S: Final = 10.0  # from the first byte of a request, or from accept, to its last header
HTTP_KEEPALIVE_S: Final = 75.0  # longer than the 60 s of common proxies, which must close first
HTTP_SEND_S: Final = 30.0  # a client that takes nothing of its answer for so long is cut off
HTTP_LINGER_S: Final = 2.0  # a refused client is read, not heard, this long
HTTP_LINGER_BYTES: Final = 16 * 1024 * 1024
HTTP_LINE_BYTES: Final = 8_190  # the request line
HTTP_FIELDS: Final = 100
HTTP_FIELD_BYTES: Final = 8_190  # one header field
HTTP_HEAD_BYTES: Final = 65_536
HTTP_CONNECTIONS: Final = 10_000  # each worker process
DESCRIPTORS_RESERVED: Final = 64  # of each worker process, that no connection gets
HTTP_DISPATCHERS: Final = 2_048  # requests of a worker that wait inside; above WRITES_IN_FLIGHT
HTTP_BODIES_BYTES: Final = 128 * 1024 * 1024  # of a worker's requests that are arriving
HTTP_OUTGOING_BYTES: Final = 128 * 1024 * 1024  # of its answers whose clients are slow
SLOW_REQUEST_S: Final = 1.0  # an HTTP request that takes longer is logged

TASTE_S: Final = 2.0  # of CPU, to merge an update before the writer does
TASTES_WAITING: Final = 100  # each HTTP worker
TASTER_BYTES: Final = 1024 * 1024 * 1024  # of address space; most of it is never touched
DOCUMENT_UPDATE_BYTES: Final = 128 * 1024  # of one push to a document
DOCUMENT_BYTES: Final = 1024 * 1024  # of a document, its history included
DOCUMENT_HISTORY_BYTES: Final = 256 * 1024  # of it, what is more than twice the row
DOCUMENT_UPDATES: Final = 256  # stored beside a document's snapshot before they go into it
DOCUMENT_FOLD_BYTES: Final = 32 * 1024  # as above, or the snapshot's size if that is more
DOCUMENTS_DECODED: Final = 1_000  # in the writer's memory
DOCUMENTS_DECODED_BYTES: Final = 64 * 1024 * 1024  # as above, about
DOCUMENT_SUBSCRIPTIONS: Final = 1_000  # of one WebSocket
DOCUMENTS_OPENING: Final = 8  # that a ws worker has the writer look at, at a time
DOCUMENT_PAGE_UPDATES: Final = 500  # that a ws worker reads at a time

WAL_CHECKPOINT_BYTES: Final = 4 * 1024 * 1024  # PASSIVE above this
WAL_CHECKPOINT_AGE_S: Final = 5.0
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024  # RESTART above this

LIVE_QUERIES: Final = 1_000  # of one connection
LIVE_QUERIES_TOTAL: Final = 100_000  # each worker process; more: 503 UNAVAILABLE
LIVE_BYTES: Final = 4 * 1024 * 1024  # of memory, about, for those of one connection
LIVE_BYTES_TOTAL: Final = 256 * 1024 * 1024
LIVE_SCANNED: Final = 1_000  # different ones of an entity that no equality finds
LIVE_ROWS: Final = 10_000  # of a result
LIVE_RESULT_BYTES: Final = 16 * 1024 * 1024
LIVE_PAGE_BYTES: Final = 256 * 1024  # of rows in one message, if they are more than one
LIVE_SENDING_BYTES: Final = 64 * 1024 * 1024  # of results that wait for their clients, each worker
LIVE_SUB_ID_CHARS: Final = 200
LIVE_WILD_CHARS: Final = 100  # of a `$like`, between two `%`, that has a `_`

ROOMS: Final = 10_000  # more: 429 ROOM_LIMIT_REACHED
ROOMS_OF_USER: Final = 100
ROOMS_BYTES: Final = 64 * 1024 * 1024  # what all members of all rooms hold, as JSON text
ROOM_MEMBERS: Final = 5_000
ROOM_BYTES: Final = 1024 * 1024  # what a room's members hold: the size of its snapshot
ROOM_NAME_CHARS: Final = 200
ROOM_TOPIC_CHARS: Final = 200
ROOM_DATA_BYTES: Final = 8 * 1024  # of a member, a broadcast or a relayed message
ROOM_IDLE_S: Final = 120.0  # a member without a subscribed socket that is not heard of
ROOM_POLL_S: Final = 15.0  # who has asked for the room this recently stays when a socket closes
ROOM_TICK_S: Final = 0.05  # news of rooms are gathered this long
ROOM_TICK_UPDATES: Final = 50  # members' changes in one tick; more: a snapshot if it is smaller
ROOM_TICK_BYTES: Final = 256 * 1024  # of broadcasts and relayed messages of a room in one tick
ROOM_RELAY_S: Final = 0.02  # a worker passes on what clients say this often
ROOM_RELAYS: Final = 32  # messages of one socket in that time; it is not read until the next
ROOM_COMMANDS_IN_FLIGHT: Final = 4_096  # each worker process; more: 503 UNAVAILABLE
ROOM_TIMEOUT_S: Final = 10.0
ROOM_ALIVE_S: Final = 1.0  # how often a socket worker asks whether it has missed news of rooms
ROOM_LEASE_S: Final = 20.0  # sockets of a worker silent for this long are gone
CHANNELS: Final = 1_000
CHANNEL_MESSAGES: Final = 100
CHANNEL_MESSAGES_DEFAULT: Final = 50  # of a history, without `limit`
CHANNEL_MESSAGES_MAX: Final = 1_000
CHANNEL_NAME_CHARS: Final = 200
CHANNEL_MESSAGE_BYTES: Final = 64 * 1024
CHANNELS_BYTES: Final = 16 * 1024 * 1024  # of all messages kept

BUS_ROOMS_HWM: Final = 8_192  # messages; above what ROOM_COMMANDS_IN_FLIGHT lets through
BUS_ROOM_NEWS_HWM: Final = 1_000  # for each socket worker; more are dropped: fresh snapshots
BUS_ROOM_NEWS_BYTES: Final = 1024 * 1024  # one message of news, or of replies, is cut here
BUS_WRITES_HWM: Final = 4_096  # messages; above WRITES_IN_FLIGHT, so that no reply is dropped
BUS_CHANGES_HWM: Final = 2_000  # batches for each subscriber; more are dropped, read from the log
BUS_SIGNALS_HWM: Final = 10_000
BUS_STATUS_HWM: Final = 4  # for each worker; an old heartbeat is worth nothing

HEARTBEAT_FRESH_S: Final = 5.0  # an older heartbeat does not make a worker ready
HEARTBEAT_LOST_S: Final = 15.0  # a worker silent for this long is aborted and started again
WORKER_BOOT_S: Final = 60.0  # the first heartbeat may take this long
ABORT_GRACE_S: Final = 2.0  # from SIGABRT to SIGKILL
RESTART_DELAY_FIRST_S: Final = 0.1  # doubles with each failure, full jitter
RESTART_DELAY_MAX_S: Final = 10.0
RESTART_RESET_S: Final = 10.0  # a worker that was up for this long starts with a clean slate
RESTARTS_UNTIL_REPORTED: Final = 5
WRITER_FAILURES: Final = 3  # unexpected errors in a row; then the supervisor ends
DRAIN_GRACE_S: Final = 10.0  # on top of PYLON_DRAIN_DELAY_S and PYLON_DRAIN_SECS
CONTROL_CONNECTIONS: Final = 16
CONTROL_LINE_BYTES: Final = 65_536
PRUNE_STEP: Final = 1_000
PRUNE_PERIOD_S: Final = 10.0
