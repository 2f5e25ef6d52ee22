"""HTTP for all resources: middleware, routing, callers, bodies, responses.

    middleware    runs before and after each request: ids, CSRF, headers, metrics, the access log
    access_log    a line for a share of the requests
    request_spans  a span for each request of a sampled trace
    request_metrics  counts requests by route, errors by code, sizes of bodies
    routing       paths with an encoded slash
    callers       the caller and the address of a request
    body          reads and decodes request bodies (`pylon.body_types` declares their types)
    unreadable    decodes lists of changes of which some cannot be stored
    parameters    reads query parameters
    idempotency   the Idempotency-Key header;  versions  ETag, If-Match and If-None-Match
    responses     sends JSON and errors
    addresses     the URLs and ports of the roles
    static_files  serves PYLON_STATIC_DIR
"""
