package bars

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestMain lets this program be started again as a part, as programs that measure are.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "-child" {
		os.Exit(m.Run())
	}
	var o Options
	o.Register(flag.CommandLine, "")
	flag.Parse()
	o.Main(Parts{"double": Part(double)}, nil)
}

func double(_ context.Context, n int) (map[string]int, error) {
	if n < 0 {
		return nil, errors.New("less than nothing")
	}
	return map[string]int{"pid": os.Getpid(), "twice": 2 * n}, nil
}

func newRun(t *testing.T, only string, pairs int) *Run {
	return &Run{Context: t.Context(), Dir: t.TempDir(), Pairs: pairs, wanted: regexp.MustCompile(only)}
}

// A part runs in a process of its own, gets its arguments and gives its result back.
func TestAloneIsAnotherProcess(t *testing.T) {
	r := newRun(t, "", 1)
	got, _, err := Alone[map[string]int](r, "double", 21)
	if err != nil || got["twice"] != 42 || got["pid"] == os.Getpid() || got["pid"] == 0 {
		t.Errorf("%v (%v); this is process %d", got, err, os.Getpid())
	}
}

func TestPartsThatFail(t *testing.T) {
	p := Parts{"double": Part(double)}
	f := func(name, args, want string) {
		t.Helper()
		var out bytes.Buffer
		err := p.run(t.Context(), name, args, &out)
		if err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("%s %s: %v, want %q; it printed %q", name, args, err, want, &out)
		}
	}
	f("double", "-1", "double: less than nothing")
	f("double", "nonsense", "double: invalid character")
	f("triple", "1", `no part is called "triple"`)
}

// Only what is wanted is measured, and what fails does not keep the rest from being measured.
func TestTakeGoesOnAfterFailure(t *testing.T) {
	r := newRun(t, "^(b|c2|d)$", 1)
	var ran []string
	measure := func(err error, rows ...string) Measure {
		return Measure{rows, func() error { ran = append(ran, rows[0]); return err }}
	}
	broken := errors.New("broken")
	err := r.take([]Measure{measure(nil, "a"), measure(broken, "b"), measure(nil, "c1", "c2"), measure(nil, "d")})
	if want := []string{"b", "c1", "d"}; !reflect.DeepEqual(ran, want) || !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "b: ") {
		t.Errorf("%v ran, want %v (%v)", ran, want, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r.Context, ran = ctx, nil
	err = r.take([]Measure{{[]string{"b"}, func() error { stop(); return nil }}, measure(nil, "d")})
	if len(ran) > 0 || err != nil {
		t.Errorf("%v ran after an interrupt (%v)", ran, err)
	}
}

// Ours and the peer's take turns in going first; a pair that others disturb is run again, and
// the third time stands. Each side finds an empty cache.
func TestPairTurnsRoundAndRepeats(t *testing.T) {
	f := func(i int, want string, wantForeign float64, disturbances ...float64) {
		t.Helper()
		var ran strings.Builder
		runs := 0
		side := func(name string) Side {
			return func() (float64, error) {
				ran.WriteString(name)
				runs++
				return disturbances[runs-1], nil
			}
		}
		foreign, err := pair(i, []Side{side("o"), side("p")},
			func() error { ran.WriteString("."); return nil },
			func(float64) error { ran.WriteString("!"); return nil })
		if err != nil || ran.String() != want || foreign != wantForeign {
			t.Errorf("pair %d ran %s, foreign %v, want %s, %v (%v)", i, &ran, foreign, want, wantForeign, err)
		}
	}
	f(0, ".o.p", 0.25, 0, 0.25)
	f(1, ".p.o", 0.2, 0.2, 0.1)
	f(2, ".o.p!.o.p", 0, 0, 0.26, 0, 0)
	f(3, ".p.o!.p.o!.p.o", 2, 1, 0, 0, 1, 2, 1)

	broken := errors.New("broken")
	_, err := pair(0, []Side{func() (float64, error) { return 1, nil }}, func() error { return nil }, func(float64) error { return broken })
	if err != broken {
		t.Errorf("an interrupt is %v", err)
	}
	_, err = pair(0, []Side{func() (float64, error) { return 1, broken }}, func() error { return nil }, nil)
	if err != broken {
		t.Errorf("a failure is %v", err)
	}
}

func TestBusyLeavesWaitingOut(t *testing.T) {
	f := func(stat string, want float64) {
		t.Helper()
		if got := busyOf(stat); got != want {
			t.Errorf("%q is %v s, want %v", stat, got, want)
		}
	}
	//       user nice system idle wait irq softirq steal guest nice
	f("cpu  100  200  400    9999 9999 800 1600 3200 9999 9999\ncpu0 1 1 1 1 1 1 1 1 1 1\n", 63)
	f("", 0)
}

func TestFreshIsEmpty(t *testing.T) {
	r := newRun(t, "", 1)
	for range 2 {
		dir, err := r.Fresh("a")
		if err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("in it are %v (%v)", left, err)
		}
		if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What was measured is kept where that is asked for; a run's folder goes with it.
func TestRunKeepsAndCleans(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("bench/results", 0o700); err != nil {
		t.Fatal(err)
	}
	var dir string
	for _, keep := range []bool{false, true} {
		o := Options{Dir: t.TempDir(), Only: "^pack$", Pairs: 2, Keep: keep}
		err := o.run(t.Context(), func(r *Run) error {
			dir = r.Dir
			return r.Measure("wire", Head{Title: "T"}, o.Keep, []Measure{
				{[]string{"pack"}, func() error { r.Sample(Sample{Row: "pack", Value: 1}); return nil }},
				{[]string{"ceiling"}, func() error { return errors.New("not wanted") }},
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("the run's folder stayed (%v)", err)
		}
		if _, err := os.Stat(Results("wire")); (err == nil) != keep {
			t.Errorf("keep %v: %v", keep, err)
		}
	}
	o := Options{Only: "("}
	if err := o.run(t.Context(), func(*Run) error { return fmt.Errorf("ran") }); err == nil || err.Error() == "ran" {
		t.Errorf("a pattern that is none: %v", err)
	}
}
