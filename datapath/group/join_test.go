package group

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestMayJoin has a volume of four blocks join while its guest writes, what it writes is dropped
// at times, sync reads run and the group begins anew, in any order: at the moment at which it
// may, all that its disk holds has a ticket, but for drops whose guest was not answered yet.
func TestMayJoin(t *testing.T) {
	joined := 0
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var disk, sent [4]int // what the disk holds, and what records with tickets do
		dirty, reading, dropping := map[int]bool{}, map[int]bool{}, map[int]bool{}
		life, lost, whole, writes := uint64(1), uint64(1), true, 0
		for b := range disk {
			disk[b], dirty[b] = -1, true
		}
		count := func() int64 { return int64(len(dirty) + len(reading)) }
		var looks []Look
		asked := true // the last look's dirty was read
		for range 100 {
			switch b := rng.IntN(4); rng.IntN(20) {
			case 0: // captured whole, or left to who reads it
				writes++
				if disk[b] = writes; !dirty[b] {
					sent[b] = writes
					delete(reading, b) // the read leaves it out
				}
			case 1: // dropped: first the mark
				writes++
				disk[b] = writes
				dirty[b], dropping[b] = true, true
			case 2: // then the count, and the answer
				if dropping[b] {
					lost++
					delete(dropping, b)
				}
			case 3, 4, 5, 6, 7, 8, 9, 10: // a sync read takes the mark, and has its ticket later
				if dirty[b] {
					delete(dirty, b)
					reading[b] = true
				} else if reading[b] {
					sent[b] = disk[b]
					delete(reading, b)
				}
			case 11:
				if rng.IntN(4) == 0 { // what had a ticket and was not safe is marked again
					life++
					dirty[b] = true
					sent[b] = 0
				}
			case 12:
				whole = rng.IntN(8) > 0
			default:
				if !asked {
					looks[len(looks)-1].Dirty = count()
					asked = true
					break
				}
				if len(looks) == 2 {
					after := looks[1]
					after.Life, after.Whole, after.Lost = life, whole, lost
					if MayJoin(looks[0], after) {
						joined++
						for b := range disk {
							if disk[b] != sent[b] && !dropping[b] {
								t.Fatalf("seed %d: block %d is %d and %d was sent; dirty %v, reading %v", seed, b, disk[b], sent[b], dirty, reading)
							}
						}
						if !whole {
							t.Fatalf("seed %d: it joined while the group was not whole", seed)
						}
					}
					looks = nil
				}
				looks, asked = append(looks, Look{Life: life, Whole: whole, Lost: lost}), false
			}
		}
	}
	if joined < 100 {
		t.Error(fmt.Sprint("joined only ", joined, " times"))
	}
}
