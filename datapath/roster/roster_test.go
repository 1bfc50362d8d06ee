package roster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

func words(vs []Volume) (s string) {
	for _, v := range vs {
		s += fmt.Sprintf(" %d:%s:%s", v.ID, v.Name, v.Phase)
	}
	return strings.TrimSpace(s)
}

// TestConfigure is what the volumes of a configuration become beside what was known.
func TestConfigure(t *testing.T) {
	var r Roster
	f := func(want string, changed bool, configured ...Volume) {
		t.Helper()
		if got := r.Configure(configured); got != changed || words(r.Volumes) != want {
			t.Errorf("changed %v, %q; want %v, %q", got, words(r.Volumes), changed, want)
		}
	}
	a, b, c := Volume{ID: 1, Name: "a"}, Volume{ID: 2, Name: "b"}, Volume{ID: 3, Name: "c"}
	f("1:a:member 2:b:member", true, b, a)
	f("1:a:member 2:b:member", false, a, b)
	f("1:a:member 2:b:member 3:c:adding", true, a, b, c)
	f("1:a:member 2:b:gone 3:c:adding", true, a, c)
	f("1:a:member 2:b:gone 3:c:adding", false, a, b, c) // once gone it stays gone
	if err := r.Add(4, "d", "/d"); err != nil {
		t.Fatal(err)
	}
	f("1:a:member 2:b:gone 3:c:adding 4:d:adding", false, a, c)
	f("1:a:member 2:b:gone 3:c:adding 4:e:adding", true, a, c, Volume{ID: 4, Name: "e"}) // the file has taken it over
	f("1:a:member 2:b:gone 3:c:adding 4:e:gone", true, a, c)
}

// TestChanges is what commands may ask.
func TestChanges(t *testing.T) {
	var r Roster
	r.Configure([]Volume{{ID: 1, Name: "a"}})
	is := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	is(r.Add(1, "x", "/x"), ErrTaken)
	is(r.Add(2, "a", "/x"), ErrTaken)
	is(r.Add(2, "b", "/b"), nil)
	_, err := r.Remove("a")
	is(err, ErrLast) // b is no member yet
	_, err = r.Remove("none")
	is(err, ErrNoVolume)
	is(r.SendAgain("none"), ErrNoVolume)
	if r.Advance(2, Joining) || !r.Advance(2, Adding) || words(r.Members()) != "1:a:member" || !r.Advance(2, Joining) || r.Advance(2, Member) || r.Advance(9, Adding) {
		t.Errorf("after its phases: %s", words(r.Volumes))
	}
	is(r.SendAgain(), nil)
	if !slices.Equal(r.Again, []record.VolumeID{1, 2}) {
		t.Errorf("to be sent again: %v", r.Again)
	}
	r.Marked(2)
	_, err = r.Remove("a")
	is(err, nil)
	if len(r.Again) != 0 || words(r.Wanted()) != "2:b:member" {
		t.Errorf("after a was removed: %v, %s", r.Again, words(r.Wanted()))
	}
	is(r.Add(1, "new", "/x"), ErrTaken)
	is(r.Add(3, "a", "/x"), nil) // the name is free again, the id never is
	if r.Phase(1) != Gone || r.Phase(99) != Gone || r.Phase(3) != Adding {
		t.Error("phases")
	}
	if got := r.Sockets([]string{"/pool"}); !slices.Equal(got, []string{"/pool", "/b", "/x"}) {
		t.Errorf("sockets %v", got)
	}
	if !r.Needed("/pool") || !r.Learn(1, "/pool") || r.Learn(1, "/pool") || r.Needed("/pool") || !r.Needed("/b") || r.Needed("/x") {
		t.Error("which filters are needed")
	}
	r.Paused = true
	r.GiveUp(5)
	r.GiveUp(6)
	if r.Removed != 5 || r.Paused || !r.Rests() || len(r.Sockets([]string{"/pool"})) != 0 {
		t.Errorf("after it was given up: %+v, sockets %v", r, r.Sockets([]string{"/pool"}))
	}
}

// TestFileRoundTrip does many random changes; what was kept after each must read as the same, and no id comes twice.
func TestFileRoundTrip(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var r Roster
		configured := []Volume{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}}
		r.Configure(configured)
		seen := map[record.VolumeID]string{1: "a", 2: "b"}
		for i := range 60 {
			id, name := record.VolumeID(1+rng.IntN(20)), fmt.Sprintf("v%d", i)
			switch rng.IntN(8) {
			case 0:
				if r.Add(id, name, "/"+name) == nil {
					if was, ok := seen[id]; ok {
						t.Fatalf("seed %d: id %d is given to %s, and was %s's", seed, id, name, was)
					}
					seen[id] = name
				}
			case 1:
				if vs := r.Wanted(); len(vs) > 0 {
					_, _ = r.Remove(vs[rng.IntN(len(vs))].Name) // the last member stays
				}
			case 2:
				r.Advance(id, Adding)
			case 3:
				r.Advance(id, Joining)
			case 4:
				r.Paused = !r.Paused
			case 5:
				if err := r.SendAgain(); err != nil {
					t.Fatal(err)
				}
			case 6:
				r.Marked(id)
			default:
				r.Learn(id, "/learned")
			}
			if len(r.Members()) == 0 {
				t.Fatalf("seed %d: no member is left: %s", seed, words(r.Volumes))
			}
			got, err := Parse(r.Encode())
			if err != nil || !reflect.DeepEqual(got.Encode(), r.Encode()) {
				t.Fatalf("seed %d: %v\n%s\n%s", seed, err, got.Encode(), r.Encode())
			}
			if rng.IntN(10) == 0 { // a restart
				r = got
				if r.Configure(configured) {
					t.Fatalf("seed %d: a restart changed it to %s", seed, words(r.Volumes))
				}
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, p := range []string{
		``, `{}`, `{"format":2,"volumes":[]}`, `{"format":1,"volumes":[],"more":1}`, `{"format":1,"volumes":[]} {}`,
		`{"format":1,"volumes":[{"id":0,"name":"a","phase":"member"}]}`, `{"format":1,"volumes":[{"id":1,"name":"a","phase":"x"}]}`,
		`{"format":1,"volumes":[{"id":2,"name":"a","phase":"member"},{"id":1,"name":"b","phase":"member"}]}`,
		`{"format":1,"volumes":[{"id":1,"name":"a","phase":"member"},{"id":2,"name":"a","phase":"adding"}]}`,
		`{"format":1,"again":[7],"volumes":[{"id":1,"name":"a","phase":"member"}]}`,
	} {
		if r, err := Parse([]byte(p)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %+v, %v", p, r, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"paused":true,"again":[1],"volumes":[{"id":1,"name":"a","phase":"member","own":true,"socket":"/s"}]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := Parse(p)
		if err != nil {
			return
		}
		if again, err := Parse(r.Encode()); err != nil || !reflect.DeepEqual(again.Encode(), r.Encode()) {
			t.Fatalf("%s reads as %+v, and that as %+v, %v", p, r, again, err)
		}
	})
}
