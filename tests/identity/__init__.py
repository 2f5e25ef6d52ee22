"""Tests of sign-in: its flows on a real store, and over HTTP with real processes."""
