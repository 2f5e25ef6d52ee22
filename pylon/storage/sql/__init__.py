"""SQL that all stores have in common: conditions and pages, written in a dialect."""
