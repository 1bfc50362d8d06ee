//go:build !race

package journal

const sample = 1
