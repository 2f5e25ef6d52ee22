"""Errors of a server that cannot answer now: 503, or 429 for one client; retryable.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class Unavailable(PylonError):
    """A part of the server that the request needs is not ready. The message names it.

    Remedy: try again after Retry-After; if the error persists, see pylonctl status and /readyz.
    """

    code = "UNAVAILABLE"
    status = 503
    retryable = True


class WriteQueueFull(PylonError):
    """Too many writes of this worker wait for the writer. Nothing was written.

    Remedy: try again after Retry-After, and send fewer writes at once.
    """

    code = "WRITE_QUEUE_FULL"
    status = 503
    retryable = True


class WriterUnavailable(PylonError):
    """The writer did not answer in time. The write may or may not have happened.

    Remedy: send it again with the same Idempotency-Key or op_id: the server carries it out once.
    Without a key, read first to see whether it happened.
    """

    code = "WRITER_UNAVAILABLE"
    status = 503
    retryable = True


class OutcomeUnknown(PylonError):
    """The connection to the database was lost while it committed, and the server could not find out
    in time whether the write happened.

    Remedy: send it again with the same Idempotency-Key or op_id: the server carries it out once.
    Without a key, read first to see whether it happened.
    """

    code = "OUTCOME_UNKNOWN"
    status = 503


class StoreUnavailable(PylonError):
    """The database refused the whole batch (full disk, I/O error) or cannot be read. Nothing was
    written.

    Remedy: free space on the disk, or repair it; the server then continues without a restart.
    """

    code = "STORE_UNAVAILABLE"
    status = 503
    retryable = True


class DiskFull(PylonError):
    """The disk of the database has less free space than PYLON_DISK_FLOOR_BYTES. The server refused
    the write before the disk was full, and wrote nothing. Reads are answered.

    Remedy: free space on the disk (the server's log has its path under disk.low), or enlarge it;
    the server then accepts writes without a restart.
    """

    code = "DISK_FULL"
    status = 503
    retryable = True


class QueryTimeout(PylonError):
    """A statement, or the wait for a database connection, took longer than limits.READ_TIMEOUT_S
    and was stopped.

    Remedy: narrow the query, ask for smaller pages, or add an index on what it compares.
    """

    code = "QUERY_TIMEOUT"
    status = 503
    retryable = True


class RateLimited(PylonError):
    """This identity or network address has sent too many requests of one kind. The request had no
    effect. `retry_after_secs` and Retry-After say when it is allowed again; docs/limits.md lists
    the rates.

    Remedy: wait for Retry-After, and send fewer requests of this kind; behind a proxy, set
    PYLON_TRUST_PROXY_HOPS, so that clients do not count as one address.
    """

    code = "RATE_LIMITED"
    status = 429
    retryable = True
    headers: tuple[tuple[str, str], ...] = ()  # of the response, beside Retry-After


class RequestQuarantined(PylonError):
    """A request like this one (method, path, query, body and credentials) has ended two server
    processes while they ran it. The server refuses it for ten minutes and does not run it.

    Remedy: do not repeat it; give the fingerprint to the operator, whose log has it under
    request.quarantined.
    """

    code = "REQUEST_QUARANTINED"
    status = 503


class Draining(PylonError):
    """This server is shutting down.

    Remedy: connect again: another server, or this one after its restart, will answer.
    """

    code = "DRAINING"
    status = 503
    retryable = True
