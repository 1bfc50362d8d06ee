#!/bin/bash
# inside.sh runs on the machine of machine.sh, and writes down what it sees there.
cd /result
exec >said 2>&1
trap 'journalctl --no-pager -o cat -u vra -u vra-sidecar -u vra-filter >journal; systemctl -ff poweroff' EXIT
all="vra vra-sidecar vra-filter"
tell() { printf '%s: ' "$1"; shift; "$@" | tr '\n' ' '; echo; }
pid() { systemctl show -p MainPID --value "$1"; }
pids() { for unit in $all; do pid "$unit"; done; }
# another UNIT PID waits until the unit runs as another process.
another() {
	for _ in $(seq 300); do
		now=$(pid "$1")
		[ "$now" != "$2" ] && [ "$now" != 0 ] && [ "$(systemctl is-active "$1")" = active ] && return
		sleep 0.1
	done
	echo "$1 does not come back"
}
ask() { curl -sS -m 20 --cacert /etc/holdfast/tls/ca.pem --cert /etc/holdfast/tls/admin.pem --key /etc/holdfast/tls/admin-key.pem --json '{}' "https://127.0.0.1:$1"; }
status() { ask 4006/holdfast.v1.StatusService/Get; }

tell "not started by the package" systemctl is-active $all
tell "start" systemctl start $all
tell "run" systemctl is-active $all
tell "say" systemctl show -p StatusText --value $all
tell "status" status
tell "logs" ask 4005/holdfast.v1.LogsService/List
for unit in vra-sidecar vra; do
	before=$(pid $unit) filter=$(pid vra-filter)
	kill -9 "$before"
	another $unit "$before"
	tell "$unit was killed" status
	[ "$filter" = "$(pid vra-filter)" ] && echo "the filter did not end with $unit"
done
before=$(pids)
tell "reload" systemctl reload $all
tell "reloaded" systemctl is-active $all
[ "$before" = "$(pids)" ] && echo "no process ended for it"
echo 'colour: red' >>/etc/holdfast/vra-sidecar.yaml
systemctl reload vra-sidecar
for _ in $(seq 100); do
	systemctl show -p StatusText --value vra-sidecar | grep -q refused && break
	sleep 0.1
done
tell "bad file" systemctl show -p StatusText --value vra-sidecar
sed -i '$d' /etc/holdfast/vra-sidecar.yaml
before=$(pid vra-sidecar)
kill -STOP "$before"
another vra-sidecar "$before"
tell "it hung" status
filter=$(pid vra-filter) vra=$(pid vra) sidecar=$(pid vra-sidecar)
tell "upgrade" dpkg --no-triggers -i /result/holdfast.deb
another vra "$vra" # it does not wait for them
another vra-sidecar "$sidecar"
tell "after it" systemctl is-active $all
[ "$filter" = "$(pid vra-filter)" ] && echo "the filter went on"
tell "stop" systemctl stop $all
tell "results" systemctl show -p Result --value $all
tell "purge" dpkg --no-triggers -P holdfast
ls /etc/holdfast/vra.yaml
tell "kept" ls /var/lib/holdfast
