package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// history is one that was made, and what made it; a kept one has this beside it in made.json.
type history struct {
	Args       historyArgs
	Checkpoint uint64
	Note       string
}

// history makes a history in a fresh folder of that name, or in the kept folder, unless there is one
// in that already; drop removes what is not kept. Dir of its arguments says where the store is.
func (b *bench) history(name, kept string, h historyArgs) (made history, drop func(), err error) {
	dir, drop := kept, func() {}
	if dir == "" {
		if dir, err = b.Fresh(name); err != nil {
			return made, drop, err
		}
		drop = func() { os.RemoveAll(dir) }
	}
	h.Dir = filepath.Join(dir, "store")
	note := filepath.Join(dir, "made.json")
	p, err := os.ReadFile(note)
	switch {
	case err == nil:
		if err = json.Unmarshal(p, &made); err == nil && made.Args != h {
			err = fmt.Errorf("%s is of another history: %+v, want %+v", note, made.Args, h)
		}
		return made, drop, err
	case !errors.Is(err, fs.ErrNotExist):
		return made, drop, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return made, drop, err
	}
	from := time.Now()
	r, _, err := bars.Alone[historyResult](b.Run, "history", h)
	made = history{h, r.Checkpoint, fmt.Sprintf("made in %.0f s", time.Since(from).Seconds())}
	if err == nil && kept != "" {
		if p, err = json.Marshal(made); err == nil {
			err = os.WriteFile(note, p, 0o600)
		}
	}
	if err != nil {
		drop()
	}
	return made, drop, err
}
