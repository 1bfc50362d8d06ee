// Package regions decides which regions of a disk stand in its activity log: those that
// a write may have changed since it was last known what is marked and that the disk holds it. It is
// pure: a shell (package activity) writes what it says, and tells it of time and of what became of a round.
//
// Rules that it keeps:
//   - In the state On a write goes on only once all of its regions stand in the log durably.
//   - A region leaves the log only when no write began in it for the whole idle time, none is under way, and since
//     then the marks were written and the disk was synced.
//   - Nobody waits for a log that is late or gone: writes go on, and are noted, so that a log that comes back has them.
//
// Cost: two bits and four bytes a region, so that 1 TiB takes 272 KiB.
package regions
