// Package datapath assembles the data plane: Source, which carries the writes of
// groups to their targets, and Target, which takes them into a journal and shows
// views of it. cmd/vra is a thin main around the two.
//
//	Source, a group:
//	                    marks: cuts, boundaries
//	tap ──► feed ──► pack (parallel) ──► stow ──► window ──► send ──► wire 4008
//	          │                            └ slots are free again       │
//	          └── numbers and labels          acks, listed ◄── wire 4007
//	resync: walks the dirty maps, so that sync reads come out of the tap too
//	group.Machine decides; every answer to it goes through step
//
//	Target: wire ──► deliver ──► journal ──► views ──► NBD on unix sockets
//
// What the parts rely on:
//   - Records are numbered by feed alone, in ticket order. A slot is freed once the
//     record that holds the write's last byte stands in the window.
//   - A window that is full stops feed; then the pools fill up, the filters drop and
//     mark, and lost says so. No guest waits for anything here.
//   - A life is one incarnation begun by this process. What belongs to an earlier one
//     is dropped wherever it is found, under flow.mu.
//   - The durable ticket is published only after the acknowledged seq was noted in
//     the run directory, so that a target that comes back with less is always seen.
//
// queues.go holds every depth with its reason.
package datapath
