"""What the SQL of all stores has in common: conditions and pages, written in a dialect."""
