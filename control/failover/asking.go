package failover

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// Asking is a user's word to a job that another process carries out.
type Asking struct {
	Word recovery.Event `json:"word"`
	Who  string         `json:"who,omitempty"`
	Note string         `json:"note,omitempty"`
}

// Ask tells whoever carries a job out that it is to end, who wants it, and why.
func Ask(folder, id string, a Asking) error {
	dir, err := folderOf(folder, id)
	if err != nil {
		return err
	}
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return kvm.WriteFile(filepath.Join(dir, cancelName), text)
}

// asking is what somebody asked for; one whose words do not read wants it to end all the same.
func (j *Job) asking() (a Asking, asked bool) {
	text, err := os.ReadFile(filepath.Join(j.Dir, cancelName))
	if errors.Is(err, fs.ErrNotExist) {
		return a, false
	}
	if err != nil || json.Unmarshal(text, &a) != nil {
		return Asking{}, true
	}
	return a, true
}

// cancelled is the entry of a job that is taken back before its machines run: in the words of who asked for it, or of whoever carries it out.
func (r *Runner) cancelled(j *Job, note string) recovery.Entry {
	a, asked := j.asking()
	e := recovery.Entry{Time: r.Now(), Event: recovery.Cancel, Who: cmp.Or(a.Who, r.Who), Asked: asked, Note: cmp.Or(note, a.Note)}
	if k := j.Plan.Kind; a.Word == recovery.Reject && !k.Fences() && !k.OneWay() {
		e.Event, e.Asked = recovery.Reject, false
	}
	return e
}
