#!/bin/sh
# First process of the container, until it becomes pylonctl: `docker run pylon start`.
# Secrets belong into /etc/pylon/pylon.env, where every pylonctl looks, also one by `docker exec`.
set -eu

if [ "${1:-}" = start ] && [ ! -w /data ]; then
    echo "pylon: uid $(id -u) may not write to /data: chown -R 10001:10001 the folder behind it" >&2
    exit 78
fi
exec pylonctl "$@"
