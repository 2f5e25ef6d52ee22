"""The matrix of access: every role, entity, verb and path of a real server against a model."""
