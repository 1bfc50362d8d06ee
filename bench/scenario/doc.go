// Package scenario runs a lab: two sites on this machine as real processes, joined
// by a link that can be slowed and cut.
//
//	guest ── NBD ── vra-filter ── source vra ══ link ══ target vra ── NBD ── views
//	                └────────────── supervisor ──────────────┘
//
// A lab is a folder and a short runtime folder. The supervisor is a process of its
// own, apart from the terminal: it starts the three daemons, starts one again
// within a second when it dies, carries the link (a TCP relay; wire/faultlink) and
// answers on a socket. Up, Start, Open, Status, SetRate, SetLinkUp and Down are what a
// command or a test calls.
//
// What a caller may rely on:
//   - Up leaves nothing behind when it fails or is given up: no process, no file.
//   - A process is ended by its number only after its start time and boot were found
//     to be those in the manifest, so that a number used again is never hit. That
//     works without the supervisor too.
//   - A lab that was ended without purge can be started again, and is the same lab.
//   - Down with purge deletes what the manifest names and nothing else. The manifest
//     names a thing before it is made.
//   - The daemons write their logs to files of their own, so that they outlive the
//     supervisor: a guest goes on when it is killed.
//
// Layout of a lab's folder:
//
//	lab.json          the manifest
//	context.yaml      for holdfast --context
//	disks/            the protected disks, raw
//	etc/              configuration of the daemons, certificates and keys of the sites
//	production/       data of the source vra
//	recovery/         data of the target vra: journal and replicas
//	logs/             of each daemon, turned over at 8 MiB, three old ones kept
//
// The runtime folder (sockets, order page, marks) is memory-backed where the machine
// has such a place, and goes away with Down.
package scenario
