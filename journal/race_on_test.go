//go:build race

package journal

// sample is 1 of how many points the tests of one goroutine visit: the race
// detector has little to find in them and makes them many times slower.
const sample = 9
