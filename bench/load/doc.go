// Package load makes seeded guest workloads and knows what a disk must hold after them.
//
// # Data
//
// A Kind names what the bytes resemble (db, text, zero, random, mixed). A Corpus is
// 16 MiB of it; the payload of a write is a stretch of the corpus that follows from
// the write's number, with a 32-byte stamp at the head of each 512-byte sector that
// names volume, sector and write. So every sector of a disk says which write it came
// from, and all its bytes can be recomputed.
//
// # What a checkpoint must hold
//
// A Stamper issues writes and notes, on one logical clock, when each was issued and
// when it was answered. Check reads the images of all volumes at a checkpoint and
// says whether together they are the state after a prefix of that order:
//
//   - A write is included when a sector carries its stamp, or when it was answered
//     before an included write was issued (a dependent write may know of it).
//   - Each sector of an included write carries its own stamp, or that of a write that
//     had not been answered when it was issued: so no write is half there.
//   - Every sector is whole: its stamp is in its place and its bytes are those of that
//     write. A sector never written is zero.
//
// Zeroing leaves no stamp: a zero sector stands for any zeroing that may account for
// it. A trim may zero a sector or leave it, each sector by itself.
package load
