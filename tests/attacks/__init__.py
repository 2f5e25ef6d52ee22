"""The attacks of the security review, one module for each of its numbers."""
