//go:build !race

package segment

const sample = 1
