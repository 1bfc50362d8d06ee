package failover

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// inWords is why a step failed, for people: a limit that ran out is named, a key of another job is that job's id, and a group, which the
// report names, is not named by its number.
func (c *carrier) inWords(ctx context.Context, s recovery.Step, err error) error {
	if err == nil {
		return nil
	}
	late := "it did not answer in time"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		late = "not within " + config.Duration(s.Limit).String()
	}
	text := strings.NewReplacer(context.DeadlineExceeded.Error(), late, context.Canceled.Error(), "interrupted").Replace(err.Error())
	text = ofGroup.ReplaceAllString(text, "")
	return errors.New(c.nameJobs(text))
}

// ofGroup is how a target begins what it says of a group's journal.
var ofGroup = regexp.MustCompile(`journal: group [^\s:]+: `)

// leastKey is the least length of a key that is looked for in a text: no word is as long.
const leastKey = 16

// nameJobs puts the ids of jobs of the same folder in place of their keys, and says where the first is told of.
func (c *carrier) nameJobs(text string) string {
	folder := filepath.Dir(c.job.Dir)
	ids, _ := IDs(folder) // it is about words: what does not read keeps its key
	see := ""
	for _, id := range ids {
		entries, _, err := Read(folder, id)
		if err != nil || len(entries) == 0 || entries[0].Plan == nil {
			continue
		}
		key := entries[0].Plan.Key
		if len(key) < leastKey || !strings.Contains(text, key) {
			continue
		}
		text = strings.ReplaceAll(text, key, "job "+id)
		if see == "" && id != c.job.Plan.ID {
			see = "; see: holdfast failover report " + id
		}
	}
	return text + see
}
