// Package scrub decides what of a store is read back next, so that all of it is read
// within some time and rot is found while it can still be mended. It is pure: what there
// is, when it was read last and what time it is come in, what to read and how fast comes
// out. FORMAT.md has the file in which a store keeps when things were read last; losing
// it only means reading again.
//
// What was never read comes first, the newest of it before the rest; then what was read
// longest ago, once half of the time has passed. The rate is the lowest at which
// everything is read in time, and never above the cap.
package scrub
