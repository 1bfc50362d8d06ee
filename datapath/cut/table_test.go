package cut

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write the tables in testdata anew")

// golden holds a table against the file of its name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("%s:%d:\n got %s\nwant %s", name, i+1, a[i], b[i])
		}
	}
	if len(a) != len(b) {
		t.Errorf("%s has %d lines, want %d", name, len(b), len(a))
	}
}

var two = []record.StreamID{1, 2}

func id(number uint64) cutword.ID { return cutword.ID{Leader: 1, Term: 9, Number: number} }

func place(number uint64) Said {
	return Said{1, cutword.Word{Kind: cutword.Place, Group: 5, ID: id(number), Members: cutword.Membership(two), Wall: 77, Tag: "t"}}
}

func said(k cutword.Kind, from Link) Said {
	return Said{from, cutword.Word{Kind: k, Group: 5, ID: id(10)}}
}

// TestMemberTable is every event in every phase of a member: what it does, and where it is then.
func TestMemberTable(t *testing.T) {
	phases := []struct {
		name string
		way  []MemberEvent
	}{
		{"idle", nil},
		{"placing", []MemberEvent{place(10)}},
		{"placing, void", []MemberEvent{place(10), said(cutword.Void, 1)}},
		{"standing", []MemberEvent{place(10), Took{}}},
		{"ending", []MemberEvent{place(10), Took{}, said(cutword.Release, 1)}},
		{"ending, void", []MemberEvent{place(10), Took{}, Broke{"a resync opens"}}},
		{"holding", []MemberEvent{place(10), Took{}, said(cutword.Release, 1), Ended{Intact: true}}},
		{"idle, resting", []MemberEvent{place(10), Took{}, said(cutword.Release, 1), Ended{Intact: true, Held: time.Millisecond}, said(cutword.Confirm, 1)}},
	}
	other := place(11)
	other.Word.Members++
	events := []struct {
		name  string
		event MemberEvent
		after time.Duration
	}{
		{"place", place(11), 0},
		{"place, the same number", place(10), 0},
		{"place, other members", other, 0},
		{"place, 99 ms later", place(11), 99 * time.Millisecond},
		{"release", said(cutword.Release, 1), 0},
		{"release, another link", said(cutword.Release, 2), 0},
		{"confirm", said(cutword.Confirm, 1), 0},
		{"confirm, another link", said(cutword.Confirm, 2), 0},
		{"void", said(cutword.Void, 1), 0},
		{"void, another link", said(cutword.Void, 2), 0},
		{"a word for leaders", said(cutword.Placed, 1), 0},
		{"took", Took{}, 0},
		{"took, not", Took{Why: "a resync is open"}, 0},
		{"ended", Ended{Intact: true, Held: time.Millisecond}, 0},
		{"ended, broken", Ended{Held: HoldMost}, 0},
		{"gone", Gone{1}, 0},
		{"gone, another link", Gone{2}, 0},
		{"broke", Broke{"a resync opens"}, 0},
		{"floor", Floor{20}, 0},
		{"passed, early", Passed{}, HoldMost - 1},
		{"passed", Passed{}, HoldMost},
	}
	var table strings.Builder
	for _, p := range phases {
		for _, e := range events {
			m := NewMember(5, two)
			for _, way := range p.way {
				m.Step(epoch, way)
			}
			before := m.Phase()
			as := m.Step(epoch.Add(e.after), e.event)
			if !strings.HasPrefix(p.name, before.String()) {
				t.Fatalf("%s is %v", p.name, before)
			}
			fmt.Fprintf(&table, "%-14s %-24s %-9v", p.name, e.name, m.Phase())
			for _, a := range as {
				table.WriteString(" " + memberAct(a))
			}
			if m.floor > 11 {
				fmt.Fprintf(&table, " floor %d", m.floor)
			}
			table.WriteString("\n")
		}
	}
	golden(t, "member.txt", trim(table.String()))
}

func trim(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func memberAct(a MemberAction) string {
	switch a := a.(type) {
	case Take:
		return fmt.Sprintf("Take(%d, %q)", a.ID.Number, a.Tag)
	case Answer:
		return fmt.Sprintf("Answer(%d, %s)", a.To, word(a.Word))
	}
	return strings.TrimPrefix(fmt.Sprintf("%T%v", a, a), "cut.")
}

func word(w cutword.Word) string {
	s := fmt.Sprintf("%v %d", w.Kind, w.ID.Number)
	if w.Kind == cutword.Place {
		s += fmt.Sprintf(" %q", w.Tag)
	}
	if w.Why != "" {
		s += fmt.Sprintf(" above %d: %s", w.Floor, w.Why)
	}
	if err := w.Check(); err != nil {
		s += " BAD " + err.Error()
	}
	return s
}

// TestLeaderTable is every event in every stage of a leader.
func TestLeaderTable(t *testing.T) {
	heard := func(m record.StreamID, k cutword.Kind, number uint64) Heard {
		w := cutword.Word{Kind: k, Group: 5, ID: id(number)}
		if k == cutword.Refused {
			w.Floor, w.Why = 30, "guests were held a moment ago"
		}
		return Heard{m, w}
	}
	type at struct {
		event LeaderEvent
		after time.Duration
	}
	up := []at{{Up{1}, 0}, {Up{2}, 0}}
	placed := append(slices.Clone(up), at{Wanted{true, "t"}, 0})
	releasing := append(slices.Clone(placed), at{heard(1, cutword.Placed, 1), 0}, at{heard(2, cutword.Placed, 1), 0})
	stages := []struct {
		name string
		auto bool
		way  []at
	}{
		{"resting, one is not connected", false, up[:1]},
		{"resting", false, up},
		{"resting, an interval is served", true, append([]at{{Up{1}, -time.Minute}, {Up{2}, -time.Minute}, {Tick{}, 0}, {heard(1, cutword.Placed, 1), 0}, {heard(2, cutword.Placed, 1), 0}},
			at{heard(1, cutword.Held, 1), 0}, at{heard(2, cutword.Held, 1), 0})},
		{"awaiting", false, placed},
		{"awaiting one", false, append(slices.Clone(placed), at{heard(1, cutword.Placed, 1), 0})},
		{"releasing", false, releasing},
		{"releasing one", false, append(slices.Clone(releasing), at{heard(1, cutword.Held, 1), 0})},
		{"resting, void", false, append(slices.Clone(placed), at{heard(2, cutword.Refused, 1), 0})},
	}
	events := []struct {
		name string
		at
	}{
		{"up", at{Up{2}, 0}},
		{"down", at{Down{2}, 0}},
		{"wanted", at{Wanted{true, "u"}, 0}},
		{"not wanted", at{Wanted{}, 0}},
		{"wanted, 70 ms later", at{Wanted{true, "u"}, 70 * time.Millisecond}},
		{"placed", at{heard(2, cutword.Placed, 1), 0}},
		{"placed, another cut", at{heard(2, cutword.Placed, 7), 0}},
		{"held", at{heard(2, cutword.Held, 1), 0}},
		{"held, another cut", at{heard(2, cutword.Held, 7), 0}},
		{"held, no member", at{heard(3, cutword.Held, 1), 0}},
		{"refused", at{heard(2, cutword.Refused, 1), 0}},
		{"refused, another cut", at{heard(2, cutword.Refused, 7), 0}},
		{"a word for members", at{heard(2, cutword.Void, 1), 0}},
		{"listed", at{Listed{1}, 0}},
		{"listed, another leader's", at{Listed{40}, 0}},
		{"tick", at{Tick{}, 0}},
		{"tick, 2 ms later", at{Tick{}, HoldMost}},
		{"tick, 1 s later", at{Tick{}, time.Second}},
		{"tick, 5 s later", at{Tick{}, 5 * time.Second}},
	}
	var table strings.Builder
	for _, s := range stages {
		for _, e := range events {
			l := NewLeader(LeaderConfig{Group: 5, Me: 1, Members: two, Term: 9, Interval: 5 * time.Second, Auto: s.auto})
			for _, way := range s.way {
				l.Step(epoch.Add(way.after), 77, way.event)
			}
			if !strings.HasPrefix(s.name, l.Stage().String()) {
				t.Fatalf("%s is %v", s.name, l.Stage())
			}
			said := l.Step(epoch.Add(e.after), 77, e.event)
			fmt.Fprintf(&table, "%-31s %-26s %-9v", s.name, e.name, l.Stage())
			for _, say := range said {
				fmt.Fprintf(&table, " %d(%s)", say.To, word(say.Word))
			}
			if l.Trouble() != "" {
				fmt.Fprintf(&table, " trouble: %s", l.Trouble())
			}
			table.WriteString("\n")
		}
	}
	golden(t, "leader.txt", trim(table.String()))
}

// TestIntervalsAreCounted: an interval whose cut is listed, however late, and one that has none.
func TestIntervalsAreCounted(t *testing.T) {
	l := NewLeader(LeaderConfig{Group: 5, Me: 1, Members: two, Term: 9, Interval: time.Second, Auto: true})
	at := func(ms int, e LeaderEvent) []Say { return l.Step(epoch.Add(time.Duration(ms)*time.Millisecond), 77, e) }
	take := func(ms int, e LeaderEvent, listed int) {
		t.Helper()
		said := at(ms, e)
		if len(said) != 2 || said[0].Word.Kind != cutword.Place {
			t.Fatalf("at %d ms it says %v", ms, said)
		}
		n := said[0].Word.ID
		for _, k := range []cutword.Kind{cutword.Placed, cutword.Held} {
			for _, m := range two {
				at(ms, Heard{m, cutword.Word{Kind: k, Group: 5, ID: n}})
			}
		}
		if listed > 0 {
			at(listed, Listed{n.Number})
		}
	}
	at(0, Up{1})
	at(10, Up{2})
	at(60, Tick{}) // places
	at(65, Tick{}) // and is void, since nobody answers
	take(400, Tick{}, 600)
	take(1000, Tick{}, 2100) // listed in the interval after
	at(2050, Down{2})
	at(2100, Tick{})
	at(3000, Tick{})
	take(4100, Up{2}, 0)
	at(5000, Tick{})
	if s := l.Stats(); s.Intervals != 5 || s.Listed != 2 || s.Confirmed != 3 {
		t.Errorf("%+v", s)
	}
}

// Membership does not depend on the order, and hardly ever is the same for others.
func TestMembership(t *testing.T) {
	seen := map[uint64][]record.StreamID{}
	for a := record.StreamID(1); a < 60; a++ {
		for b := a + 1; b < 60; b++ {
			list := []record.StreamID{a, b}
			n := cutword.Membership(list)
			if m := cutword.Membership([]record.StreamID{b, a}); m != n || seen[n] != nil || n == cutword.Membership([]record.StreamID{a, a, b}) {
				t.Fatalf("%v is %d, the other way round %d, and %v", list, n, m, seen[n])
			}
			seen[n] = list
		}
	}
}
