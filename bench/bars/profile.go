package bars

import (
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"runtime/trace"
)

// Profile keeps a CPU profile of this process until stop, where the environment variable
// HOLDFAST_CPUPROFILE names a file, to which the process' id is added; and what all goroutines
// did and waited for, for go tool trace, where HOLDFAST_TRACE does.
func Profile() (stop func()) {
	profiled := kept("HOLDFAST_CPUPROFILE", pprof.StartCPUProfile, pprof.StopCPUProfile)
	traced := kept("HOLDFAST_TRACE", trace.Start, trace.Stop)
	return func() {
		traced()
		profiled()
	}
}

// kept has a file written that an environment variable names, if it does, from now until stop.
func kept(variable string, start func(io.Writer) error, end func()) (stop func()) {
	name := os.Getenv(variable)
	if name == "" {
		return func() {}
	}
	f, err := os.Create(fmt.Sprintf("%s.%d", name, os.Getpid()))
	if err == nil {
		err = start(f)
	}
	if err != nil { // of use to whoever asked for it, and no reason not to measure
		fmt.Fprintf(os.Stderr, "no %s: %v\n", variable, err)
		return func() {}
	}
	return func() {
		end()
		f.Close()
	}
}
