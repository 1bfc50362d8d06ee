package bars

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// Profile keeps a CPU profile of this process until stop, where the environment variable
// HOLDFAST_CPUPROFILE names a file, to which the process' id is added.
func Profile() (stop func()) {
	name := os.Getenv("HOLDFAST_CPUPROFILE")
	if name == "" {
		return func() {}
	}
	f, err := os.Create(fmt.Sprintf("%s.%d", name, os.Getpid()))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil { // of use to whoever asked for it, and no reason not to measure
		fmt.Fprintln(os.Stderr, "no profile:", err)
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}
}
