// Command packaging puts what is built where a machine wants it, takes it away again, and makes a Debian package of it.
//
//	packaging [-bin DIR] [-destdir DIR] [-prefix DIR] install | uninstall
//	packaging [-bin DIR] [-version V] [-out DIR] deb
//
// It runs at the root of the tree, on the commands in DIR (bin). A package is a function of the tree, the commands and
// SOURCE_DATE_EPOCH (by default 0): made twice, it is the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

func run(args []string, getenv func(string) string) error {
	flags := flag.NewFlagSet("packaging", flag.ContinueOnError)
	bin := flags.String("bin", "bin", "the `folder` of the commands")
	destdir := flags.String("destdir", "", "the `folder` that stands for the root of the machine")
	prefix := flags.String("prefix", "/usr/local", "where commands and what belongs to them goes, below that; files of users are in /etc")
	version := flags.String("version", "0~devel", "of the package")
	out := flags.String("out", "bin", "the `folder` that the package is written to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	epoch, err := sourceDate(getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	switch flags.Arg(0) {
	case "install":
		files, err := collect(".", *bin, *prefix)
		if err != nil {
			return err
		}
		return install(*destdir, files)
	case "uninstall":
		files, err := collect(".", *bin, *prefix)
		if err != nil {
			return err
		}
		return uninstall(*destdir, files)
	case "deb":
		files, err := collect(".", *bin, "/usr")
		if err != nil {
			return err
		}
		name := filepath.Join(*out, fmt.Sprintf("holdfast_%s_%s.deb", *version, runtime.GOARCH))
		p, err := deb(files, control{version: *version, architecture: runtime.GOARCH}, time.Unix(epoch, 0).UTC())
		if err != nil {
			return err
		}
		fmt.Println(name)
		return os.WriteFile(name, p, 0o644)
	}
	return errors.New("want install, uninstall or deb")
}

// sourceDate reads seconds since 1970.
func sourceDate(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	s, err := strconv.ParseInt(text, 10, 64)
	if err != nil || s < 0 {
		return 0, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", text)
	}
	return s, nil
}
