// Package capture is the filter, which splits a guest's writes, and what it
// shares with the VRA: the order page, the slot pool and, on request, the marks.
//
// Filter is the filter's side: a front.Device a volume, in its own small process.
// Tap is the VRA's side: the writes of all filters of a group, merged by ticket.
// FORMAT.md has every byte the two share.
//
// What each side may rely on:
//   - A write's 4 KiB blocks are marked before the write is submitted to the disk,
//     and stay marked (generation or dirty map) until the durable ticket has passed it.
//   - Tickets are taken after the disk write and before the guest's answer; writes
//     that overlap on a volume go to the disk one after the other, so that ticket
//     order is disk order.
//   - A write that no record will carry is in the dirty map, then counted in lost,
//     then answered. While a dirty map holds a bit, lost differs from what the last
//     closed resync covered.
//   - While somebody may write to the disk past the filter (Past), all of it is dirty
//     and no resync can close; afterwards all of it is read.
//   - A mirror volume has no disk here: its guest's QEMU has written to its own before a write comes, and lets
//     us read it. While no QEMU mirrors to it (PastUnmirrored) no resync can close, and no cut stands that is taken then.
//   - Nothing in the guest's path waits for the VRA. A dead or stopped VRA frees no
//     slots: writes are dropped to the dirty map and the guest goes on.
package capture
