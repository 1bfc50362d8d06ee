// Package activity keeps the activity log of a disk: a small file beside it that says which regions of 16 MiB
// writes may have changed since the rest of the file was written, and, as of then, which blocks the target may lack.
// The marks themselves stand in memory and are gone after a crash of the host; what this file says is a superset of
// them, so that not the whole disk needs to be compared then.
//
// What a caller may rely on:
//   - A write that Enter let go on, in the state On, changes only regions that stand in the log durably.
//   - Read returns, after any crash, log and marks that together hold every block in which the disk and the
//     target may differ, unless the log was Late when it crashed. One that has failed is removed, durably, before a
//     write goes on that it says nothing of: Read finds none then. Only where that takes longer than LateAfter it may.
//   - Nobody waits longer than LateAfter.
//
// A write into a region that stands in the log costs a look at a bit and a store of four bytes. Memory: what package
// regions takes, and 66 MiB a TiB for images of the marks. FORMAT.md of package capture has the bytes.
package activity
