"""Servers, stages, clients and waits that several test modules use; each exists once, here."""
