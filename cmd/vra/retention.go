package main

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// retention is the policy of a target's configuration.
func retention(c config.Retention) (retain.Policy, error) {
	p := retain.Policy{History: c.History.D(), Limit: int64(c.Limit), WarnPercent: c.WarnPercent, Minimum: c.Minimum.D()}
	var err error
	if p.Tiers, err = retain.ParseTiers(c.Thin); err != nil {
		return p, fmt.Errorf("target.retention.thin: %w", err)
	}
	if err := p.Validate(); err != nil {
		return p, fmt.Errorf("target.retention: %w", err)
	}
	return p, nil
}
