package main

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// shaping is the policy of a source's configuration.
func shaping(c *config.Source) (p shape.Policy, err error) {
	var all []error
	at := func(where string, err error) {
		if err != nil {
			all = append(all, fmt.Errorf("source.%s: %w", where, err))
		}
	}
	if c.Shaping.Cap != "" {
		p.Cap, err = shape.ParseRate(c.Shaping.Cap)
		at("shaping.cap", err)
	}
	for i, text := range c.Shaping.Windows {
		w, err := shape.ParseWindow(text)
		at(fmt.Sprintf("shaping.windows[%d]", i), err)
		p.Windows = append(p.Windows, w)
	}
	p.Zone = c.Shaping.Zone
	p.Priorities = make(map[string]shape.Priority)
	for i, g := range c.Groups {
		if g.Priority != "" {
			p.Priorities[g.Name], err = shape.ParsePriority(g.Priority)
			at(fmt.Sprintf("groups[%d].priority", i), err)
		}
	}
	if len(all) == 0 {
		at("shaping", p.Validate())
		at("shaping.zone", zone(p.Zone))
	}
	return p, errors.Join(all...)
}

func zone(name string) error {
	_, err := datapath.LoadZone(name)
	return err
}
