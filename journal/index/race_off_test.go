//go:build !race

package index

const sample = 1
