package scenario

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
)

// Options say what lab to bring up.
type Options struct {
	Dir     string // the lab's folder: empty, or not there and then made
	Volumes int    // empty disks, named vol1 and on; 0 with Images, else 1
	Size    config.Size
	Images  []string // raw disks to protect copies of, named by their base names
	Link    config.Rate
	// Direct has the source dial the target itself: nothing stands between them that takes processors, and there is no link to slow or cut.
	Direct bool
	// Interval is the time between checkpoints.
	Interval config.Duration
	// Compression is auto (also when empty), lz4 or none.
	Compression string
	// Cache is that of the disks, as a filter's file has it; empty for none.
	Cache string
	// Overcommit skips the check that full disks would fit.
	Overcommit bool
	// TargetStore is an empty folder for the target's store in place of one in the lab's, as on a
	// disk of its own. What comes to lie there stays when the lab is deleted.
	TargetStore string
	// Binaries is the folder that holds holdfast, vra, vra-filter and vra-sidecar.
	Binaries string
	// Env is added to the environment of supervisor and daemons, as NAME=value.
	Env []string

	errorWait time.Duration // where a test is less patient
}

// Defaults and bounds of a lab.
const (
	DefaultSize = config.Size(1 << 30)
	MinLink     = config.Rate(8_000)
	MaxVolumes  = 64
	GroupName   = "lab"
)

// ErrUsage is wrapped by the errors that the options alone show.
var ErrUsage = errors.New("usage")

// usage marks an error as one of usage without changing its words.
type usage struct{ error }

func (u usage) Unwrap() []error { return []error{u.error, ErrUsage} }

// planned is a disk to be made.
type planned struct {
	Volume
	image string // to copy, or ""
}

// Volume is a protected disk of a lab.
type Volume struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	Size int64  `json:"size"` // bytes
	NBD  string `json:"nbd"`  // where the guest attaches it, a URI
	Disk string `json:"disk"` // the disk itself, relative to the lab's folder
	// VhostUser is the socket where a virtual machine attaches it through shared memory; "" in a lab
	// of before there were any.
	VhostUser string `json:"vhost_user,omitempty"`
}

// Validate fills the defaults and tells every mistake that the options alone show;
// the error wraps ErrUsage. Up calls it.
func (o *Options) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, usage{fmt.Errorf(format, args...)}) }
	if o.Dir == "" {
		add("--dir is missing: name a folder that is empty or does not exist")
	}
	if o.Volumes == 0 && len(o.Images) == 0 {
		o.Volumes = 1
	}
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	if o.Interval == 0 {
		o.Interval = config.DefaultInterval
	}
	if o.Volumes < 0 || o.Volumes+len(o.Images) > MaxVolumes {
		add("--volumes %d: a lab has 1 to %d disks, images included", o.Volumes, MaxVolumes)
	}
	if o.Size < 0 || o.Size%sectorBytes != 0 {
		add("--size %s is no multiple of %d bytes", o.Size, sectorBytes)
	} else if o.Volumes > 0 && int64(o.Size) > math.MaxInt64/4/int64(o.Volumes) {
		add("--size %s is too large", o.Size)
	}
	if o.Interval < config.MinInterval || o.Interval > config.MaxInterval {
		add("--interval %s is not between %s and %s", o.Interval, config.MinInterval, config.MaxInterval)
	}
	if c := o.Compression; c != "" && c != "auto" && c != "lz4" && c != "none" {
		add("--compression %s: want auto, lz4 or none", c)
	}
	if c := o.Cache; c != "" && c != config.CacheNone && c != config.CacheWriteback {
		add("--cache %s: want none or writeback", c)
	}
	if o.Direct && o.Link != 0 {
		add("--link %s and direct: sites that dial each other have no link that could be slowed", o.Link)
	}
	if o.Link != 0 && o.Link < MinLink {
		add("--link %s is less than %s; none is no limit", o.Link, MinLink)
	}
	seen := map[string]bool{}
	for _, v := range o.plan() {
		if err := config.CheckName(v.Name); err != nil {
			add("image %s: its file name names the volume: %w: rename it or make a link with another name", v.image, err)
		} else if seen[v.Name] {
			add("two volumes would be named %s: rename an image or make a link with another name", v.Name)
		}
		seen[v.Name] = true
	}
	return errors.Join(errs...)
}

// link is the word for it in the manifest.
func (o *Options) link() string {
	if o.Direct {
		return directLink
	}
	return o.Link.String()
}

// store is the target's.
func (o *Options) store(dir string) string {
	return cmp.Or(o.TargetStore, filepath.Join(dir, targetSite, "store"))
}

// plan lists the disks: images first, in their order. Sizes of images are not known yet.
func (o *Options) plan() []planned {
	var disks []planned
	for _, image := range o.Images {
		disks = append(disks, planned{Volume: Volume{Name: filepath.Base(image)}, image: image})
	}
	for i := range max(0, min(o.Volumes, MaxVolumes)) {
		disks = append(disks, planned{Volume: Volume{Name: fmt.Sprintf("vol%d", i+1), Size: int64(o.Size)}})
	}
	for i := range disks {
		disks[i].ID = uint32(i + 1)
		disks[i].Disk = filepath.Join("disks", disks[i].Name)
	}
	return disks
}

// lookAtImages checks the images on disk and fills in their sizes.
func lookAtImages(disks []planned) (total int64, err error) {
	var errs []error
	for i := range disks {
		if d := &disks[i]; d.image != "" {
			var err error
			if d.Size, err = checkImage(d.image); err != nil {
				errs = append(errs, err)
			}
		}
		if total += disks[i].Size; total < 0 {
			return math.MaxInt64 / 4, errors.Join(errs...)
		}
	}
	return total, errors.Join(errs...)
}
