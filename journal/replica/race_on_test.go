//go:build race

package replica

// sample is 1 of how many points the tests of one goroutine visit: the race
// detector has nothing to find in them and makes them twenty times slower.
const sample = 9
