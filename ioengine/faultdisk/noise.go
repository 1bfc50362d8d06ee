package faultdisk

import (
	"encoding/binary"
	"math/rand/v2"
)

// Noise fills p with bytes that follow from the seed and do not compress: at the price of a copy, under the race
// detector too, where a loop of a test's own costs a hundred times as much.
func Noise(p []byte, seed uint64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
}
