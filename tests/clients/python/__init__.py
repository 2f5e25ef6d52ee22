"""Tests of the Python client (clients/python), sync and async by the same suite."""
