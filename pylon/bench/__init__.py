"""`pylonctl bench`: the operations of the data plane, measured through the product's own code."""
