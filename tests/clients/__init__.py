"""Tests of the clients that this repository ships."""
