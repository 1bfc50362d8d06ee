//go:build !race

package datapath

// slower is how many times as long guests pause where the race detector looks on.
const slower = 1
