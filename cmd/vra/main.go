// Command vra is the data plane: the source of some groups, a target, or both.
//
//	vra --config FILE [--check-config] [--log-file FILE] [--nice N] [--debug-tape FILE]
//
// It logs to stderr, answers status, checkpoints and views on its unix socket, and
// ends in good order on SIGINT or SIGTERM. Being killed is as good: what was
// acknowledged is safe, and what was not is marked. On SIGHUP it reads its file again:
// the log level, shaping, priorities and retention change at once; where anything else
// differs the file is refused, and what was in force stays so. Under systemd it tells
// when it is ready, and that its loops turn.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/systemd"
	"github.com/holdfast-dr/holdfast/control/version"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

func main() { daemon.Main("vra", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := daemon.NewFlags("vra")
	stale := flags.Bool("accept-stale-stores", false, "this once, go on from the stores that are there, though others that are missing may hold, or are known to hold, what came later: that is given up, and the source sends it again")
	nice := flags.Int("nice", 10, "how far the guests of this host go first where processors are few: 0 (not at all) to 19")
	var debug debugTape
	debug.flags(flags.FlagSet)
	if done, err := flags.Take(args, stdout, stderr); done || err != nil {
		return err
	}
	if *nice < 0 || *nice > 19 {
		return daemon.Usage(errors.New("--nice is 0 to 19"))
	}
	if err := debug.check(); err != nil {
		return daemon.Usage(err)
	}
	cfg, err := config.LoadVRA(flags.File)
	if err != nil {
		return err
	}
	if done, err := flags.Checked(checkFiles(cfg), stdout); done || err != nil {
		return err
	}
	log, level, logged := flags.Log(stderr, cfg.LogLevel.Level())
	defer logged()
	log = log.With("site", cfg.Site, "vra", cfg.ID)
	notify, err := systemd.FromEnvironment(log)
	if err != nil {
		return err
	}
	if err := giveWay(*nice); err != nil {
		log.Warn("guests do not go first", "error", err)
	}
	to, end, err := debug.open(log)
	if err != nil {
		return err
	}
	for {
		err = serve(ctx, &live{file: flags.File, cfg: cfg, level: level}, notify, log, to, *stale)
		if !errors.Is(err, datapath.ErrTurned) || ctx.Err() != nil {
			return errors.Join(err, end())
		}
	}
}

// checkFiles tells what of the files would keep the VRA from running; it makes nothing.
func checkFiles(cfg *config.VRA) error {
	if err := cfg.CheckFiles(); err != nil {
		return err
	}
	if t := cfg.Target; t != nil {
		if _, err := retention(t.Retention); err != nil {
			return err
		}
		// They are not made: on a disk that is not mounted they would be on another one.
		for i, dir := range t.Stores {
			if st, err := os.Stat(dir); err != nil || !st.IsDir() {
				return fmt.Errorf("target.stores[%d]: %s is no folder: mount its disk, and make it", i, dir)
			}
		}
	}
	if s := cfg.Source; s != nil {
		if _, err := shaping(s); err != nil {
			return err
		}
	}
	credentials, err := wire.LoadCredentials(cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.PeerCA)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	var errs []error
	if site := credentials.Certificate.Leaf.URIs[0].Host; site != cfg.Site {
		errs = append(errs, fmt.Errorf("tls.cert: %s is a certificate of the site %s, and this is %s", cfg.TLS.Cert, site, cfg.Site))
	}
	if site := credentials.Pins[0].Site; site != cfg.TLS.PeerSite {
		errs = append(errs, fmt.Errorf("tls.peer_ca: %s is the authority of the site %s, and tls.peer_site is %s", cfg.TLS.PeerCA, site, cfg.TLS.PeerSite))
	}
	return errors.Join(errs...)
}

// targetConfig is the target as the configuration asks for it.
func targetConfig(cfg *config.VRA, credentials wire.Credentials, log *slog.Logger) (datapath.TargetConfig, error) {
	t := cfg.Target
	policy, err := retention(t.Retention)
	return datapath.TargetConfig{
		FS: ioengine.OS(), Store: t.Store, RunDir: cfg.RunDir, DataDir: cfg.DataDir, ListenControl: cmp.Or(t.Listen, t.ListenControl), ListenData: t.ListenData,
		CacheBytes: int64(t.Cache), IndexMemory: int64(t.IndexMemory), Retention: policy, Credentials: credentials, Log: log,
		Parity: datapath.Parity{Local: t.Parity.Local, K: t.Parity.K, M: t.Parity.M, Stores: t.Stores, DataDir: cfg.DataDir},
	}, err
}

// serve runs all that the configuration asks for until ctx ends or a part fails.
// A tape, unless it is nil, gets what passes on the wire. acceptStale: see datapath.Parity.
func serve(ctx context.Context, live *live, notify *systemd.Notifier, log *slog.Logger, to *tape.Tape, acceptStale bool) (err error) {
	cfg := live.cfg
	lock, err := datapath.OpenDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	credentials, err := wire.LoadCredentials(cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.PeerCA)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return err
	}
	socket, err := daemon.Listen(cfg.Socket, -1)
	if err != nil {
		return err
	}
	defer socket.Close()

	var target *datapath.Target
	if cfg.Target != nil {
		conf, err := targetConfig(cfg, credentials, log)
		if err != nil {
			return err
		}
		conf.Parity.AcceptStale = acceptStale
		conf.Tape = to
		target, err = datapath.OpenTarget(conf)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, target.Close()) }()
	}
	s := cfg.Source
	if s == nil { // what a group needs that is sent from here since its protection was reversed
		s = &config.Source{Compression: config.Auto, WindowBudget: config.DefaultWindowBudget}
	}
	sent, err := datapath.SourceGroups(cfg.DataDir, groups(s), target)
	if err != nil {
		return err
	}
	var source *datapath.Source
	if len(sent) > 0 {
		policy, err := shaping(s)
		if err != nil {
			return err
		}
		compression, err := pack.ParseCompression(s.Compression)
		if err != nil {
			return err
		}
		site := wire.Credentials{}
		if s.Shared() {
			if site, err = wire.LoadCredentials(cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.CA); err != nil {
				return err
			}
		}
		source, err = datapath.OpenSource(datapath.SourceConfig{
			ListenCuts: s.ListenCuts, SiteCredentials: site,
			Shaping: policy, Compression: compression, Connections: s.DataConnections(), WindowBudget: int64(s.WindowBudget),
			Spill:  datapath.SpillConfig{FS: ioengine.OS(), Dir: cmp.Or(s.SpillDir, filepath.Join(cfg.DataDir, "spill")), Budget: int64(s.SpillBudget)},
			RunDir: cfg.RunDir, DataDir: cfg.DataDir, Credentials: credentials, Groups: sent, Log: log, Tape: to,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, source.Close()) }()
	}

	parts := parts{}
	if target != nil {
		parts.add("target", target.Run)
		parts.add("parts", target.Turned)
	}
	if source != nil {
		parts.add("source", source.Run)
	}
	built := version.Read()
	who := datapath.Identity{Site: cfg.Site, ID: cfg.ID, Version: built.Version, Commit: built.Commit}
	parts.addFirst("socket", func(ctx context.Context) error {
		return api.ServeKeeping(ctx, socket, datapath.Handlers(who, source, target), []int{os.Getuid(), 0}, filepath.Join(cfg.DataDir, "keys.jsonl"), log)
	})
	if cfg.MetricsListen != "" {
		l, err := net.Listen("tcp", cfg.MetricsListen)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		parts.addFirst("metrics", func(ctx context.Context) error { return serveMetrics(ctx, l, datapath.Metrics(who, source, target)) })
	}
	live.source, live.target = source, target
	parts.addFirst("reload", func(ctx context.Context) error {
		notify.Reload(ctx, "replicates", live.read, log)
		return nil
	})
	alive := datapath.Alive(source, target)
	parts.add("watchdog", func(ctx context.Context) error {
		notify.Watch(ctx, func(ctx context.Context) error { return alive(ctx, time.Now()) })
		<-ctx.Done()
		return nil
	})
	log.Info("vra runs", "source", source != nil, "target", target != nil, "socket", cfg.Socket)
	err = parts.run(ctx)
	log.Info("vra ends", "error", err)
	return err
}

// groups says in the words of the data path what the file says.
func groups(s *config.Source) (gs []datapath.GroupConfig) {
	for _, g := range s.Groups {
		d := datapath.GroupConfig{
			Name: g.Name, ID: record.GroupID(g.ID), Stream: record.StreamID(g.Stream), Lineage: uint64(g.Lineage),
			Interval: time.Duration(g.Interval), Window: int64(g.Window), Control: cmp.Or(g.Target.Address, g.Target.Control), Data: cmp.Or(g.Target.Address, g.Target.Data),
			Filters: g.Filters, Freeze: datapath.Freeze{Before: g.Freeze.Before, After: g.Freeze.After},
			Paused: g.Paused,
		}
		for _, m := range g.Sources {
			d.Members = append(d.Members, datapath.Member{VRA: m.VRA, Stream: record.StreamID(m.Stream), Address: m.Address})
		}
		for _, v := range g.Volumes {
			d.Volumes = append(d.Volumes, datapath.VolumeName{ID: record.VolumeID(v.ID), Name: v.Name})
		}
		gs = append(gs, d)
	}
	return gs
}

// parts are what runs side by side; when one ends, all end.
type parts []part

type part struct {
	name  string
	run   func(context.Context) error
	first bool // it ends before the others when all are asked to
}

func (p *parts) add(name string, run func(context.Context) error) {
	*p = append(*p, part{name, run, false})
}

// addFirst adds a part that ends before those that were added by add, when all are asked to: what it has begun may need them.
func (p *parts) addFirst(name string, run func(context.Context) error) {
	*p = append(*p, part{name, run, true})
}

func (p parts) run(ctx context.Context) error {
	run, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	first, stop := context.WithCancel(run)
	var wg, firstOnes sync.WaitGroup
	for _, part := range p {
		until, group := run, &wg
		if part.first {
			until, group = first, &firstOnes
		}
		group.Go(func() {
			err := part.run(until)
			if err == nil && until.Err() == nil {
				err = errors.New("ended by itself")
			}
			if err != nil {
				fail(fmt.Errorf("%s: %w", part.name, err))
			}
		})
	}
	ended := make(chan struct{})
	asked := context.AfterFunc(ctx, func() {
		defer close(ended)
		stop()
		firstOnes.Wait()
		fail(nil)
	})
	wg.Wait()
	firstOnes.Wait()
	if !asked() {
		<-ended
	}
	stop()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(run)
}

// serveMetrics answers monitoring systems until ctx ends.
func serveMetrics(ctx context.Context, l net.Listener, c prometheus.Collector) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
