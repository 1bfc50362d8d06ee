#!/bin/bash
# machine.sh DIR: in namespaces of its own, makes a machine of what stands on this one, with an overlay for what it writes, installs
# DIR/holdfast.deb in it, fills in its files as an administrator would, and becomes its systemd, which runs DIR/inside.sh.
set -e
dir=$1 over=$1/over root=$1/over/root
mkdir "$over"
mount -t tmpfs -o mode=755 tmpfs "$over"
mkdir "$over"/{up,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$over/up,workdir=$over/work" "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/result"
mount --bind "$dir" "$root/result"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
	mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mkdir "$root"/dev/{shm,pts,mqueue,hugepages}
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ip link set lo up
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id" # not its first start, at which systemd enables all
rm -rf "$root"/var/lib/holdfast "$root"/etc/holdfast "$root"/etc/systemd/system/*.wants
for unit in systemd-udevd systemd-udev-trigger systemd-networkd systemd-resolved systemd-logind systemd-firstboot console-getty; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
ln -sf /dev/null "$root/etc/systemd/system/getty.target"

chroot "$root" dpkg --no-triggers -i /result/holdfast.deb
cp "$dir"/etc/*.yaml "$root/etc/holdfast/"
cp -r "$dir/etc/tls" "$root/etc/holdfast/"
mkdir -p "$root/var/lib/holdfast/disks"
truncate -s 64M "$root/var/lib/holdfast/disks/data.raw"
chroot "$root" chown -R holdfast:holdfast /etc/holdfast/tls /var/lib/holdfast
chmod 700 "$root/var/lib/holdfast"
mkdir -p "$root/etc/systemd/system/vra-sidecar.service.d" "$root/etc/systemd/system/multi-user.target.wants"
printf '[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n' >"$root/etc/systemd/system/vra-sidecar.service.d/soon.conf" # the test does not wait a minute
printf '[Service]\nExecStart=/bin/bash /result/inside.sh\n' >"$root/etc/systemd/system/inside.service"
ln -s ../inside.service "$root/etc/systemd/system/multi-user.target.wants/"
cd "$root"
mkdir -p before
pivot_root . before
umount -l /before
exec env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
