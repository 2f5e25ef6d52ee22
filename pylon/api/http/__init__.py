"""HTTP itself for all resources: routing, middleware, bodies, callers, responses."""
