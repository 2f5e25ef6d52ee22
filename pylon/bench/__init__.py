"""Benchmark of the data plane: measures the product's own functions, without a network.

    measure    calls an operation for some time, and returns its rate
    rows       a built-in manifest, and rows for any manifest
    reads      the read operations
    writes     the write operations
    table      the result as text, JSON and Markdown
    run        measures all operations

Called by `pylonctl bench`.
"""
