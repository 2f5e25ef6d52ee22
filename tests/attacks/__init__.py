"""Attacks on a served app: one module for each number of parts A and B of the review of 2026-11."""
