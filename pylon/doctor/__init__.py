"""Doctor: checks of the machine, the node, the database and the proxies, for `pylonctl doctor`."""
