//go:build race

package datapath

// slower is how many times as long guests pause: the race detector makes all that is done with
// what they write that much slower, and a guest that writes more than goes through tests the
// dropping of writes, and little else.
const slower = 4
