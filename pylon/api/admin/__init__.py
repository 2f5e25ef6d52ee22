"""Resources of the server itself (spec/http.md §3.1, §3.17, §3.18, §7).

    system      health, readiness, metrics, the manifest, the URLs of the roles
    readiness   the checks of /readyz
    openapi     the OpenAPI document
    reset       deletes all rows, for tests
"""
