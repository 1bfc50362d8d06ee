package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is what this program was built from.
type version struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // with a plus at its end: and changes to it
	Go      string `json:"go"`
}

func buildVersion() version {
	v := version{Version: "devel", Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed {
		v.Commit += "+"
	}
	return v
}

func (v version) line() string { return fmt.Sprintf("%s (commit %s, %s)", v.Version, v.Commit, v.Go) }

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return a.print(v, "VERSION COMMIT GO", [][]string{{v.Version, v.Commit, v.Go}})
		},
	}
}
