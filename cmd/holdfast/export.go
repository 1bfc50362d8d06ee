package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/spf13/cobra"
)

// exported is what export says.
type exported struct {
	Checkpoint string          `json:"checkpoint"`
	Volumes    []exportedImage `json:"volumes"`
}

type exportedImage struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Size int64  `json:"size"`
}

func (a *app) exportCommand() *cobra.Command {
	var at, out string
	cmd := &cobra.Command{
		Use:     "export --checkpoint ID|TAG|latest --out DIR",
		Aliases: []string{"clone"},
		Short:   "Copy a group as it was at a checkpoint to raw disk images",
		Long: `Export opens a view, copies each of its volumes to a plain raw image in DIR named
after the volume, and closes the view. Images are sparse: what is zero takes no space.
All of them belong to the same checkpoint. Images are readable by you alone (0600), and
so is DIR when it is made (0700). If it fails or is interrupted, no image stays behind;
a file that is there already is never replaced. It is a clone of the group's disks, too:
holdfast clone is the same.`,
		Example: "  holdfast export --checkpoint latest --out /tmp/images",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkAt(at); err != nil {
				return err
			}
			if out == "" {
				return usagef("--out is missing: name the folder for the images")
			}
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			if out, err = filepath.Abs(out); err != nil {
				return err
			}
			id, err := resolve(cmd.Context(), client, c.Group, at)
			if err != nil {
				return err
			}
			m := newMeter(a.stderr)
			result, err := export(cmd.Context(), client, c.Group, id, out, m)
			m.done()
			if err != nil {
				return err
			}
			rows := make([][]string, len(result.Volumes))
			if a.output == "table" {
				of := named(cmd.Context(), client, c.Group)[result.Checkpoint]
				for i, v := range result.Volumes {
					rows[i] = []string{result.Checkpoint, shortTime(of.Time), orHyphen(of.Tag), v.Name, bytesText(v.Size), v.Path}
				}
			}
			return a.print(result, "CHECKPOINT TIME TAG VOLUME SIZE PATH", rows)
		},
	}
	a.atFlag(cmd, &at)
	cmd.Flags().StringVar(&out, "out", "", "`DIR` for the images; made when absent")
	cmd.MarkFlagDirname("out")
	return cmd
}

// closeWait is how long closing a view may take once the command was interrupted.
const closeWait = 10 * time.Second

// export copies all volumes; it leaves all images or none.
func export(ctx context.Context, client *api.Client, group, at, out string, m *meter) (result *exported, err error) {
	made, err := makeFolder(out)
	if err != nil {
		return nil, err
	}
	e := &exporter{out: out, meter: m}
	defer func() {
		if err != nil {
			e.removeAll()
			if made {
				os.Remove(out)
			}
		}
	}()
	res, err := client.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Group: group, Checkpoint: at, ReadOnly: true, Passing: true, IdempotencyKey: api.NewKey()})
	if err != nil {
		return nil, explain(api.RoleTarget, err)
	}
	v := res.GetView()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
		defer cancel()
		_, closeErr := client.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: v.GetId(), IdempotencyKey: api.NewKey()})
		gone := api.AsFailure(closeErr)
		if closeErr != nil && err == nil && gone.Code != api.NotFound { // the target closes what nobody reads
			err = fmt.Errorf("close view %s: %w", v.GetId(), explain(api.RoleTarget, closeErr))
		}
	}()
	if err := e.copyAll(ctx, v); err != nil {
		return nil, why(ctx, client, group, v, err)
	}
	if err := e.publish(); err != nil {
		return nil, err
	}
	return &exported{Checkpoint: v.GetCheckpoint(), Volumes: e.images}, nil
}

// makeFolder makes the folder unless it is there.
func makeFolder(path string) (made bool, err error) {
	err = os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if info, statErr := os.Stat(path); statErr == nil && !info.IsDir() {
			return false, fmt.Errorf("%s is a file: name a folder", path)
		}
		return false, nil
	}
	if err != nil {
		return false, folderError(path, err)
	}
	return true, nil
}

// exporter is an export under way. Images are written under a name of their own and
// get their right ones when all are whole.
type exporter struct {
	out    string
	meter  *meter
	images []exportedImage
	wrote  []string // files to remove on failure

	done, total int64 // bytes of data
}

func (e *exporter) removeAll() {
	for _, path := range e.wrote {
		if invariant.Planted("holdfast/keep-partial") {
			break
		}
		os.Remove(path)
	}
}

func partial(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".partial")
}

// copyAll copies every volume of the view.
func (e *exporter) copyAll(ctx context.Context, v *holdfastv1.View) error {
	var sources []*nbd.Client
	defer func() {
		for _, c := range sources {
			c.Close()
		}
	}()
	var plans [][]span
	for _, vol := range v.GetVolumes() {
		if err := config.CheckName(vol.GetName()); err != nil {
			return err // it becomes a path
		}
		path := filepath.Join(e.out, vol.GetName())
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already: name another folder, or remove it", path)
		}
		c, err := nbd.Dial(ctx, vol.GetNbd())
		if err != nil {
			return err
		}
		sources = append(sources, c)
		// A call to a server that hangs ends with the connection.
		defer context.AfterFunc(ctx, func() { c.Close() })()
		plan, err := dataOf(c)
		if err != nil {
			return cmpCtx(ctx, err)
		}
		plans = append(plans, plan)
		for _, s := range plan {
			e.total += s.n
		}
		e.images = append(e.images, exportedImage{Name: vol.GetName(), Path: path, Size: c.Size()})
	}
	if err := e.checkSpace(); err != nil {
		return err
	}
	for i, image := range e.images {
		if err := e.copyOne(ctx, sources[i], image, plans[i]); err != nil {
			return cmpCtx(ctx, fmt.Errorf("export %s: %w", image.Name, err))
		}
	}
	return nil
}

// cmpCtx says that the command was interrupted where that explains the error.
func cmpCtx(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (e *exporter) checkSpace() error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(e.out, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); e.total > free {
		return fmt.Errorf("no space in %s: the images need up to %s, and %s are free: make room or name another folder", e.out, bytesText(e.total), bytesText(free))
	}
	return nil
}

// copyOne copies the data of one volume and makes the image durable.
func (e *exporter) copyOne(ctx context.Context, c *nbd.Client, image exportedImage, plan []span) (err error) {
	path := partial(image.Path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there: another export runs, or one was killed: remove it", path)
	}
	if err != nil {
		return err
	}
	e.wrote = append(e.wrote, path)
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(image.Size); err != nil {
		return err
	}
	err = copySpans(ctx, c, f, plan, func(n int64) {
		e.done += n
		e.meter.show("copying", e.done, e.total)
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

// publish gives all images their names.
func (e *exporter) publish() error {
	for _, image := range e.images {
		if _, err := os.Lstat(image.Path); err == nil {
			return fmt.Errorf("%s came to be meanwhile: name another folder, or remove it", image.Path)
		}
		if err := os.Rename(partial(image.Path), image.Path); err != nil {
			return err
		}
		e.wrote = append(e.wrote, image.Path)
	}
	d, err := os.Open(e.out)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
