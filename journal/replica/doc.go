// Package replica holds the disks of a group at the recovery site as they stood at
// the beginning of its log: for each volume a raw image, and beside it a CRC32C for
// each 4 KiB block, which covers the block's place too. FORMAT.md has the bytes.
//
// What a reader may rely on: ReadAt gives bytes that verify at their place, or
// ErrCorrupt. A sum of zero stands for a block of zeros, and the block is looked at
// all the same: losing one of the two files' blocks never reads as zeros.
//
// Writes are durable after Sync, and not ordered before it: a crash may leave any
// part of them, and blocks whose sum does not match. That is why a replica is written
// only while its group has no history and every write not yet acknowledged comes
// again (initial sync), or while the records stay in the log (promotion).
//
// An initial sync writes by Fill, Write and Zero; a promotion through a Promoter, under which a
// crash or an error at any moment leaves every byte that the log does not cover as it was.
//
// A Volume takes writes from one goroutine, and reads from many beside it: a lock by
// range keeps them from seeing a block between its bytes and its sum. It costs 4 bytes
// on disk for each 4 KiB, and no memory beyond a buffer of 256 KiB for each volume being
// written and each read, and 32 of them while a promotion or Fill writes.
package replica
