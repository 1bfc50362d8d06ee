// Package version says what a program was built from, in the same words in all of them.
package version

import (
	"fmt"
	"runtime/debug"
	"strings"
	"time"
)

// Version is what a program was built from.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // with a plus at its end: and changes to it
	Go      string `json:"go"`

	Date time.Time `json:"-"` // of the commit; zero when it is not known
}

// Read reads what the linker noted.
func Read() Version {
	v := Version{Version: "devel", Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	// A version that Go made up from the commit says no more than the commit does.
	if v0 := info.Main.Version; v0 != "" && v0 != "(devel)" && !strings.HasPrefix(v0, "v0.0.0-") {
		v.Version = info.Main.Version
	}
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		case "vcs.time":
			v.Date, _ = time.Parse(time.RFC3339, s.Value) // zero when it is not one
		}
	}
	if changed {
		v.Commit += "+"
	}
	return v
}

// String is the version in one line, without the program's name.
func (v Version) String() string { return fmt.Sprintf("%s (commit %s, %s)", v.Version, v.Commit, v.Go) }
