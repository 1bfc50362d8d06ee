package datapath

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine/pulse"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// StandsAfter is how long the loop of a group may neither wait nor get on. It is on no guest's way.
const StandsAfter = 20 * time.Second

// Alive watches a VRA that is a source, a target, or both. The returned function, to be called several times in StandsAfter by one
// goroutine, says which group's loop stands, and asks both for their status, which goes through the locks that all else
// goes through: in a deadlock it does not return.
func Alive(s *Source, t *Target) func(ctx context.Context, now time.Time) error {
	w, h := pulse.NewWatch(StandsAfter), &handler{source: s, target: t}
	return func(ctx context.Context, now time.Time) error {
		named := make(map[*pulse.Pulse]string)
		if s != nil {
			for _, f := range s.flows {
				named[&f.turning] = f.cfg.Name
			}
		}
		if name := w.Stands(now, named); name != "" {
			return fmt.Errorf("the loop of the group %s stands", name)
		}
		_, err := h.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		return err
	}
}

// ConfigureShaping takes in that the configuration says something else: it holds at once, unless a user has set a policy since.
func (s *Source) ConfigureShaping(p shape.Policy) error { return s.gate.Configure(p) }

// ConfigureRetention takes in that the configuration says something else: it holds at once, for groups without a policy of their own.
func (t *Target) ConfigureRetention(p retain.Policy) error { return t.store.SetDefaultRetention(p) }
