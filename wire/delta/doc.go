// Package delta finds out which 4 KiB blocks of a volume differ between two sites by sums
// of them, not by their bytes. It is pure: it reads no disk and sends nothing; whoever
// has the blocks puts them in, and carries the questions and answers.
//
// A volume is a row of regions of 16 MiB, each a tree:
//
//	node   SHA-256 of the sums of its leaves      16 MiB, 256 leaves    32 bytes on the wire
//	leaf   SHA-256 of the sums of its blocks      64 KiB, 16 blocks     32 bytes
//	block  SHA-256 of its bytes                    4 KiB                 the first 16 bytes
//
// Sums are made of whole sums, also where a part of one travels. At a volume's end a
// region has fewer leaves, the last leaf fewer blocks, and the last block is filled with zeros.
//
// The source asks for the node, in one that differs for the leaves, and in leaves that
// differ for the blocks. It has read a region once by then and keeps its sums (128 KiB at
// most, nothing where all is zeros) until it is decided, 16 regions at a time; questions
// of 64 KiB of answers are under way at once, so that no node waits for the one before.
//
// What may be relied on:
//   - A block is found to be the same only if its sum, or one made of it, came back equal.
//     A sum of zeros means that the target does not know: it equals nothing.
//   - What was not put, of a region that was read, is not decided, and never said to be the same.
//   - Answers come in the order of the questions, of exactly their shape; anything else is
//     an error, and changes nothing.
//   - After Restart all that was not decided is asked again, of what was read before.
package delta
