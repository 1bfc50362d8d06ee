package main

import (
	"errors"
	"regexp"
	"strconv"

	"github.com/holdfast-dr/holdfast/control/config"
)

// durationFlag reads a duration in the words of the configuration.
type durationFlag struct{ *config.Duration }

func (f durationFlag) Set(text string) (err error) {
	*f.Duration, err = config.ParseDuration(text)
	return err
}

func (durationFlag) Type() string { return "duration" }

// countFlag reads a whole number.
type countFlag struct{ n *int }

func (f countFlag) Set(text string) (err error) {
	if *f.n, err = strconv.Atoi(text); err != nil {
		return errors.New("want a whole number, as in 2, not " + strconv.Quote(text))
	}
	return nil
}

func (f countFlag) String() string {
	if f.n == nil {
		return "0"
	}
	return strconv.Itoa(*f.n)
}

func (countFlag) Type() string { return "int" }

// flagError says in the words of the other arguments what is wrong with a flag.
func flagError(err error) error {
	if m := invalidArgument.FindStringSubmatch(err.Error()); m != nil {
		return usagef("%s: %s", m[1], m[2])
	}
	return usageError{err}
}

var invalidArgument = regexp.MustCompile(`(?s)^invalid argument ".*" for "(?:-\w, )?(--[a-z-]+)" flag: (.*)$`)
