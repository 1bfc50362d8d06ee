package budget

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/wire/shape"
)

const (
	low, medium, high = shape.Low, shape.Medium, shape.High

	mib = int64(1 << 20)
)

var start = time.Unix(1e6, 0)

// book makes one of 160 MiB: of one to three groups, each "priority held" in MiB, with a * when it waits, and a - when it stands.
func book(t *testing.T, groups ...string) *Book {
	t.Helper()
	most := make([]int64, len(groups))
	for i := range most {
		most[i] = 1000 * mib
	}
	b := New(160*mib, mib, most)
	for i, text := range groups {
		var name, waits string
		var held int64
		if n, _ := fmt.Sscanf(text, "%s %d %s", &name, &held, &waits); n < 2 {
			t.Fatal(text)
		}
		p, err := shape.ParsePriority(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Prioritise(i, p)
		b.Hold(i, held*mib)
		b.Wait(i, waits == "*")
		b.Stand(i, waits == "-")
	}
	return b
}

func TestRoom(t *testing.T) {
	f := func(want int64, groups ...string) { // of the first
		t.Helper()
		if got := book(t, groups...).Room(start, 0) / mib; got != want {
			t.Errorf("%q: room for %d MiB, want %d", groups, got, want)
		}
	}
	f(160, "medium 0") // alone it has all
	f(160, "low 0")
	f(0, "medium 160")
	f(0, "medium 120", "medium 0")  // its floor of 40 and all of the pool of 80
	f(120, "medium 0", "medium 0")  // its floor and the whole pool
	f(80, "medium 0", "medium 80")  // what the other took of the pool is gone
	f(40, "medium 0", "medium 120") // its floor it has always
	f(10, "medium 30", "medium 130")
	f(100, "low 0", "high 0")            // a quarter of the pool is not for the lower
	f(40, "low 0", "high 100")           // but its floor
	f(60, "high 0", "low 100")           // and the higher has what is left of the whole pool
	f(66, "low 0", "medium 0", "high 0") // floors of 26; half of a pool of 80 for the third
	f(86, "medium 0", "low 0", "high 0")
	f(106, "high 0", "low 0", "medium 0")
	f(0, "medium 100", "medium 60 *") // more than its share, and an equal waits
	f(20, "medium 60", "medium 80 *")
	f(20, "medium 60", "medium 80")
	f(0, "medium 90", "high 50") // not yet above what the lower may use: 60 of 80
}

func TestLimitOfAGroupCounts(t *testing.T) {
	b := New(160*mib, mib, []int64{30 * mib, 1000 * mib})
	if got := b.Room(start, 0); got != 30*mib {
		t.Errorf("room for %d", got)
	}
	b.Hold(0, 31*mib)
	if got := b.Room(start, 0); got > 0 {
		t.Errorf("room for %d", got)
	}
	// It waits for itself: nobody gives way for that.
	b.Prioritise(0, high)
	b.Prioritise(1, low)
	b.Hold(1, 115*mib)
	b.Wait(0, true)
	if i, ok := b.GiveWay(start); ok {
		t.Errorf("%d gives way", i)
	}
}

func TestGiveWay(t *testing.T) {
	f := func(want int, groups ...string) { // -1: nobody
		t.Helper()
		i, ok := book(t, groups...).GiveWay(start)
		if !ok {
			i = -1
		}
		if i != want {
			t.Errorf("%q: %d gives way, want %d", groups, i, want)
		}
	}
	f(-1, "medium 200")
	f(-1, "low 200", "low 0 *")              // equals do not give way to each other
	f(-1, "low 100", "high 40")              // the pool is not short: 60 of 80
	f(0, "low 100", "high 60")               // 80 of 80: it is
	f(-1, "low 40", "high 120")              // it holds its floor and no more
	f(-1, "low 115", "high 41")              // for a trickle nobody gives way
	f(0, "low 115", "high 41 *")             // unless it cannot get in
	f(-1, "low 115", "high 1 *")             // below its floor it can
	f(0, "low 66", "medium 46", "high 26")   // 60 of 80; low gives way at 50
	f(2, "low 28", "medium 66", "low 66")    // whoever holds most
	f(1, "high 86", "medium 46", "low 26")   // then the next
	f(2, "high 86", "medium 46", "low 28")   // but the lowest first
	f(-1, "high 106", "medium 26", "low 26") // the highest never
	f(0, "high 100 -", "low 60 *")           // unless nothing of it can be sent
	f(0, "medium 100 -", "medium 60 *")
	f(1, "medium 46 -", "medium 80 -", "medium 30 *") // whoever holds most
	f(-1, "medium 160 -", "medium 0 *")               // whose floor is free is not short
	f(-1, "medium 100 -", "medium 60")                // nor who does not wait
	f(-1, "medium 41 -", "medium 60 *")               // for less than what may be under way nobody gives way
}

// Who rests waits for that, and not for memory: nobody gives way to him.
func TestRestIsNoWant(t *testing.T) {
	b := book(t, "medium 100 -", "medium 60 *")
	b.groups[1].rests = start.Add(time.Second)
	if i, ok := b.GiveWay(start); ok {
		t.Errorf("%d gives way", i)
	}
	if i, ok := b.GiveWay(start.Add(time.Second)); !ok || i != 0 {
		t.Errorf("%d, %v: nobody gives way to one that waits", i, ok)
	}
}

// Who gave way rests.
func TestRest(t *testing.T) {
	b := book(t, "low 100", "high 70")
	if i, ok := b.GiveWay(start); !ok || i != 0 {
		t.Fatal("nobody gives way")
	}
	b.Hold(0, 0)
	if got := b.Room(start, 0); got != 40*mib {
		t.Errorf("room for %d, want its floor", got)
	}
	b.Hold(1, 0)
	if got := b.Room(start.Add(Rest-1), 0); got != 40*mib {
		t.Errorf("room for %d, want its floor", got)
	}
	if got := b.Room(start.Add(Rest), 0); got != 100*mib {
		t.Errorf("room for %d after a rest", got)
	}
}

// Whatever groups do, none starves, all together stay within the total, and what is
// there is used.
func TestBudgetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "groups")
		total := rapid.Int64Range(int64(n)*4*mib, 400*mib).Draw(t, "total")
		most := make([]int64, n)
		for i := range most {
			most[i] = rapid.Int64Range(4*mib, 500*mib).Draw(t, "most")
		}
		b := New(total, mib, most)
		held, now := make([]int64, n), start
		rests := make([]time.Time, n)
		prio := make([]shape.Priority, n)
		for i := range prio {
			prio[i] = medium
		}
		const piece = mib
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "group")
			switch rapid.IntRange(0, 6).Draw(t, "op") {
			case 0, 1, 2: // as much as it is let in
				for k := rapid.IntRange(1, 100).Draw(t, "pieces"); k > 0 && b.Room(now, i) > 0; k-- {
					held[i] += piece
					b.Hold(i, held[i])
				}
				b.Wait(i, b.Room(now, i) <= 0)
			case 3:
				held[i] -= rapid.Int64Range(0, held[i]).Draw(t, "acked")
				b.Hold(i, held[i])
			case 4:
				prio[i] = rapid.SampledFrom([]shape.Priority{low, medium, high}).Draw(t, "priority")
				b.Prioritise(i, prio[i])
			case 5:
				now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			case 6:
				g, ok := b.GiveWay(now)
				if !ok {
					continue
				}
				if prio[g] == slices.Max(prio) || held[g] <= b.Floor() {
					t.Fatalf("group %d gives way: %v holds %d, the floor is %d", g, prio[g], held[g], b.Floor())
				}
				for j := range prio {
					if prio[j] < prio[g] && held[j] > b.Floor()+mib && !now.Before(rests[j]) {
						t.Fatalf("%v gives way before %v", prio[g], prio[j])
					}
				}
				held[g], rests[g] = 0, now.Add(Rest)
				b.Hold(g, 0)
			}
			var sum int64
			for j := range held {
				sum += held[j]
				if held[j] < min(b.Floor(), most[j]) && b.Room(now, j) <= 0 {
					t.Fatalf("group %d holds %d, its floor is %d, and is not let in", j, held[j], b.Floor())
				}
			}
			if sum > total+int64(n)*piece {
				t.Fatalf("%d bytes are held of %d", sum, total)
			}
			b.first(t, now, held, most, prio, rests)
		}
	})
}

// first checks that a group of the highest priority present is let in while there is any of the
// pool, unless an equal that has less of it waits.
func (b *Book) first(t *rapid.T, now time.Time, held, most []int64, prio []shape.Priority, rests []time.Time) {
	var used int64
	for j := range held {
		used += max(0, held[j]-b.Floor())
	}
	for j := range held {
		equal := false
		for k := range held {
			equal = equal || k != j && prio[k] == prio[j] && b.groups[k].waits && held[k] < held[j]
		}
		if prio[j] == slices.Max(prio) && held[j] < most[j] && !now.Before(rests[j]) && !equal && used < b.pool() && b.Room(now, j) <= 0 {
			t.Fatalf("group %d holds %d of its %d, %d of the pool of %d is used, and it is not let in", j, held[j], most[j], used, b.pool())
		}
	}
}

// On a dead link, where nothing drains, all that want more end in the order of their priority.
func TestDeadLink(t *testing.T) {
	b := book(t, "low 0", "medium 0", "high 0")
	held, now, dropped := make([]int64, 3), start, map[int]int{}
	for range 3000 {
		for _, i := range []int{0, 1, 2} { // the lowest comes first to each round
			if b.Wait(i, b.Room(now, i) <= 0); b.Room(now, i) > 0 {
				held[i] += mib
				b.Hold(i, held[i])
			}
		}
		if i, ok := b.GiveWay(now); ok {
			held[i] = 0
			b.Hold(i, 0)
			dropped[i]++
		}
		now = now.Add(100 * time.Millisecond)
	}
	floor := b.Floor()
	if held[2] < floor+b.pool()*9/10 || held[1] > floor+mib || held[0] > floor+mib || held[0] < floor-mib {
		t.Errorf("high holds %d, medium %d, low %d MiB", held[2]/mib, held[1]/mib, held[0]/mib)
	}
	if dropped[2] > 0 || dropped[0] == 0 || dropped[1] == 0 || dropped[0] > 5 || dropped[1] > 5 {
		t.Errorf("gave way: %v", dropped)
	}
}

// Equals end with the same, whoever came first.
func TestEqualsShare(t *testing.T) {
	b := book(t, "medium 120", "medium 0")
	held := []int64{120 * mib, 0}
	for range 1000 {
		for i := range held {
			if b.Wait(i, b.Room(start, i) <= 0); b.Room(start, i) > 0 {
				held[i] += mib
				b.Hold(i, held[i])
			}
			if held[i] > 0 { // both drain alike
				held[i] -= mib / 2
				b.Hold(i, held[i])
			}
		}
	}
	if d := held[0] - held[1]; d > 4*mib || d < -4*mib {
		t.Errorf("they hold %d and %d MiB", held[0]/mib, held[1]/mib)
	}
}
