"""Resources of operation: health, readiness, metrics, reset, the OpenAPI document."""
