//go:build amd64 && !planted

package record

// search is searchInGo in the processor's own words: the compiler keeps fewer of its values in registers.
//
//go:noescape
func search(t *positions, dst, src *room, n int) (out, anchor int)
