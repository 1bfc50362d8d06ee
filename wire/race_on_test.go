//go:build race

package wire

// raceBuild: the race detector makes everything five times as dear.
const raceBuild = true
