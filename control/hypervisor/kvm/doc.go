// Package kvm speaks to QEMU about the disks of a running guest: over its monitor (QMP), on a
// unix socket.
//
// Attaching moves a disk of the guest from its file onto a filter's NBD socket, and detaching
// moves it back; neither stops the guest. QEMU itself waits for what is in flight before it changes a
// disk's node, so that at no time both ways are written to.
//
//	device ── drive ──► raw ──► file D          before, and after detaching
//	device ── drive ──► nbd ══► filter ──► D    attached
//	          kept:     raw ──► file D          with the options that they had
//
// How: qom-set of the device's property "drive", which QEMU allows on a device that runs (since 6.2).
// blockdev-reopen of the raw node, with another child, would do as well, but it cannot be used
// for the disks of -drive, whose nodes have no names of their own; and it sets all options
// that are not said again back to defaults, of which QEMU does not tell some (discard, aio, locking).
// So the nodes are left alone: those that the guest had stay open, without a lock on the
// file, held by a node of ours on top (so that QEMU does not close those that it made
// itself), and are what detaching goes back to. What is kept lives as long as that QEMU.
//
// Where threads of QEMU's serve disks (iothread), the guest is paused while its disk is moved, for
// some milliseconds: then its nodes are all the main loop's.
//
// A disk that must stay where it is, as one that is no raw file, is mirrored instead (mirror.go): QEMU writes to both.
//
//	device ── mirror ──► qcow2, RBD ... ◄── NBD export, read-only ══ filter
//	            └──────► raw ──► nbd ═════════════════════════════════►┘
//
// What decides is pure: Find and the Plans go from what QEMU answered to a list of
// steps. Carry carries steps out, and goes back when one fails.
//
// While a disk is attached, block jobs, snapshots and bitmaps that others start by the name
// of the old node see none of the guest's writes: detach first.
//
// Local is the driver of this host's QEMU for recovery: it makes machines of definitions, and runs them.
// Libvirt does the same with the libvirt of this host, and tells which machines that has.
package kvm
