package faultlink

import (
	"context"
	"io"
	"testing"
)

// Faults that come later count from what was written before, on the newest connection alone.
func TestFaultsFromNowOn(t *testing.T) {
	var n Net
	l, err := n.Listen("tcp", "there")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said := func() string {
		up, err := n.Dial(context.Background(), "tcp", "there")
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		down, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer down.Close()
		for i, s := range []string{"first", "second"} {
			if n.Dialled("there") == 2 && i == 1 {
				n.From("there", Faults{Up: Way{CutAt: 3, FlipAt: 1}})
			}
			up.Write([]byte(s))
		}
		up.Close()
		p, _ := io.ReadAll(down)
		return string(p)
	}
	for i, want := range []string{"firstsecond", "firstcec", "firstsecond"} {
		if got := said(); got != want {
			t.Errorf("connection %d carried %q, want %q", i, got, want)
		}
	}
}
