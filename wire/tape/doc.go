// Package tape is a file of what passed inside the TLS of a VRA's connections, made
// for finding out what two VRAs said to each other; tools/wiredump reads it. FORMAT.md
// beside this file gives every byte.
//
// A tape is made instead of keeping the keys of the connections for a capture of their
// packets: keys once written down open everything that was ever captured, guests' data
// included, and who keeps them cannot choose what to show. A tape holds no keys, and the
// one who writes it (package wire) leaves out what guests wrote, unless it was asked for.
//
// What its users may rely on:
//   - Writing never waits for the file: what it cannot take in time is left out, and
//     the tape says how much. A tape that is full or broken stops; connections go on.
//   - Each entry has a checksum over its header and one over its bytes. Damage costs the
//     entries it hits, and is told with its place; reading goes on behind it.
//   - A reader allocates at most MaxBytes beside its buffers, whatever the file says.
//
// A Tape may be written by many goroutines; a Reader is for one.
package tape
