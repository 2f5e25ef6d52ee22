"""Flows: what the identity process does for each action, a module for each family.

A flow is a function of the services (`workers.identity.identity.Identity`) and a call. It reads
what it needs, decides, and submits one `Transact` whose steps have conditions. It returns an
answer, or raises the `PylonError` that the client gets.
"""
