//go:build !race

package replica

const sample = 1
