//go:build race

package crc32c

// watched says that the race detector looks on; it does not see what assembly reads and writes.
const watched = true
