"""Installation on one machine: user, folders, systemd units, env file, and the site of a proxy.

The texts are in `files/`, with the paths and names of the usual installation in them; `plan` puts
the ones of this machine in their place. `record` keeps the hash of each file that was written, so
that a later run can tell an edited file from one that may be replaced. Called by
`pylonctl install-systemd` and `pylonctl uninstall`.
"""
