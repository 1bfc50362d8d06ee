#!/bin/sh
# kernel.sh DIR : has Debian's kernel for virtual machines in DIR, unpacked and not installed. Prints
# the folder that holds boot/ and lib/. What is there already is used again; of several that run at once one fetches it,
# and the others wait.
set -eu
dir=${1:?the folder}
if [ -e "$dir/complete" ]; then
	echo "$dir/root"
	exit 0
fi
command -v apt-get >/dev/null 2>&1 || { echo "kernel.sh: no apt-get: put a Debian cloud kernel, unpacked, under $dir/root and touch $dir/complete" >&2; exit 1; }
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ -e "$dir/complete" ]; then
	echo "$dir/root"
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
name() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}'; }
package=$(name)
if [ -z "$package" ]; then
	apt-get update >&2
	package=$(name)
fi
[ -n "$package" ] || { echo "kernel.sh: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
apt-get download "$package" >&2 || { apt-get update >&2 && apt-get download "$package" >&2; }
rm -rf "$dir/root"
dpkg -x ./*.deb "$dir/root"
touch "$dir/complete"
echo "$dir/root"
