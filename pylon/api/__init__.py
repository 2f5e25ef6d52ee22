"""The HTTP API (spec/http.md §3): a falcon app over the store, the writer and the bus.

    application   builds the app: routes, middleware, error answers
    services      what every resource is given
    gate          runs around each request: ids, CSRF, headers, metrics, the access log
    callers       who asks;  body, answers, parameters: reading and writing JSON
    entities query auth sync push reset system   the resources, one module for each family

Reads go to the store, policies are part of the SQL; writes are validated and encoded here and
carried out by the writer. The resources hold no state of their own: all of it is in `Services`.
"""
