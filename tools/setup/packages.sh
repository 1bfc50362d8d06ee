#!/bin/sh
# packages.sh PACKAGE... : installs the Debian packages that are absent. Without
# root, or without apt, it prints the line to run and fails.
set -eu
missing=
for p in "$@"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
line="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: needed and absent:$missing; install them with this system's package manager" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: needed and absent:$missing; run: sudo $line" >&2
	exit 1
fi
echo "setup: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $line || { apt-get update && $line; }; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "setup: the packages could not be installed; see the lines above" >&2
	exit 1
fi
