package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Changed names the keys in which two configurations of one kind differ, as mistakes name them, in the order of the file. Where a
// list became longer or shorter, or a part came or went, that is named as a whole. Both were validated, so defaults do not differ.
func Changed(old, now any) (keys []string) {
	changed(&keys, "", reflect.ValueOf(old), reflect.ValueOf(now))
	return keys
}

// ErrRestart says that a configuration differs in what only a restart takes in.
var ErrRestart = errors.New("only a restart takes these in")

// CheckLive is Changed for what was read from a file while a process runs: an error names the keys that are not live.
func CheckLive(file string, old, now any, live func(key string) bool) (keys []string, err error) {
	keys = Changed(old, now)
	if fixed := slices.DeleteFunc(slices.Clone(keys), live); len(fixed) > 0 {
		return nil, fmt.Errorf("%s: %w: %s", file, ErrRestart, strings.Join(fixed, ", "))
	}
	return keys, nil
}

func changed(keys *[]string, at string, old, now reflect.Value) {
	switch {
	case old.Kind() == reflect.Pointer && !old.IsNil() && !now.IsNil():
		changed(keys, at, old.Elem(), now.Elem())
	case old.Kind() == reflect.Struct && old.NumField() > 0 && old.Type().Field(0).Tag.Get("yaml") != "":
		for i := range old.NumField() {
			name, _, _ := strings.Cut(old.Type().Field(i).Tag.Get("yaml"), ",")
			if at != "" {
				name = at + "." + name
			}
			changed(keys, name, old.Field(i), now.Field(i))
		}
	case old.Kind() == reflect.Slice && old.Len() == now.Len():
		for i := range old.Len() {
			changed(keys, fmt.Sprintf("%s[%d]", at, i), old.Index(i), now.Index(i))
		}
	case !reflect.DeepEqual(old.Interface(), now.Interface()):
		*keys = append(*keys, at)
	}
}

// Live says whether a key of a vra's file, as Changed names it, may change while the process runs.
func (c *VRA) Live(key string) bool {
	group, isGroup := strings.CutPrefix(key, "source.groups[")
	return key == "log_level" || strings.HasPrefix(key, "source.shaping.") || strings.HasPrefix(key, "target.retention.") ||
		isGroup && strings.HasSuffix(group, "].priority")
}

// Live says whether a key of a sidecar's file may change while the process runs: none. What its certificates hold may.
func (c *Sidecar) Live(string) bool { return false }

// Live says whether a key of a filter's file may change while the process runs.
func (c *Filter) Live(key string) bool { return key == "log_level" }
