"""Pylon: one command gives an app a live backend.

What is true in every process lives in this package. `workers` and `supervisor`
import it; it imports neither of them.
"""

__version__ = "0.1.0"
