// Package stripe keeps a journal whole when disks rot or die. It has three parts:
//
//   - the code: k data blocks and m parity blocks of 64 KiB, each with a checksum that
//     says where it belongs, so that what is missing is known and never guessed;
//   - local parity (Protect, Check, Repair): beside a sealed segment file a file of two
//     parity blocks for each 32, which heals latent sectors and torn regions of one disk;
//   - Set: a file system (ioengine.FS) over several folders, the stores, that goes on
//     when any m of them are lost. FORMAT.md has the bytes of all three.
//
// What every caller may rely on:
//   - Up to m blocks of a stripe may be lost, rotted, swapped or cut short, and the bytes
//     are the same; with one more there is an error (ErrLost), never bytes.
//   - Nothing is repaired in place: what is mended becomes a new file, verified whole,
//     before the old one goes.
//   - What a Set's Sync or SyncDir said to be durable is read again while no more than m
//     stores are lost. A store that failed a write or a sync, or lost its files, is marked
//     out, durably in the others, before the operation returns; it is never read
//     again until it was built anew. One loss more than m, and the Set refuses and names
//     what is missing.
//
// What it costs. Local parity: 1/16 of the space, one read of the file, and 16 MiB of
// memory while it is computed for a segment of 256 MiB or more. A Set: m+1 writes of
// what is not sealed, (k+m)/k of the space of what is, and for each sealed file one read
// and one verified write more; in memory about 200 bytes for each file.
package stripe
