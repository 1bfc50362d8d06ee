// Package view shows a group as it was at a checkpoint: readable, and writable into
// scratch.
//
// A read takes, for each byte, what the view's own writes put there, else the newest
// version that the checkpoint holds, else the replica. Every byte is verified on the
// way: a block of the log by the checksum over its record's identity, a block of the
// replica by the one over its place. What does not verify is an error, never bytes.
// What a view wrote itself has a checksum for each block of 4 KiB, over its place.
//
// A view changes nothing but its scratch, which is durable as a disk is: a write that
// was answered survives the end of the process, one that was flushed that of the
// machine. FORMAT.md has the bytes.
//
// Opening a view reads no history. It costs 8 bytes in memory for each 64 MiB of its
// volumes, 2 KiB for each of those that were written to, 512 bytes for each 256 KiB in
// them, and for each volume that was written to two open files. Blocks of the log that
// were read ahead, or asked for again not long after the first time, stay in a cache that
// all views share. At most one goroutine for each volume
// reads ahead, while somebody reads in order.
package view
