package api_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// shop is a group whose checkpoints are kept in memory; all else about it is real: the services, the socket, the client.
type shop struct{ made []*holdfastv1.Checkpoint }

type statusOf struct {
	holdfastv1connect.UnimplementedStatusServiceHandler
}

func (statusOf) Get(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	lag := 1.5
	return &holdfastv1.StatusServiceGetResponse{Site: "west", Groups: []*holdfastv1.Group{
		{Name: "shop", Role: api.RoleSource, State: api.StateProtected, LagSeconds: &lag},
		{Name: "mail", Role: api.RoleSource, State: api.StateDisconnected, Reason: "the target does not answer"},
	}}, nil
}

type checkpointsOf struct {
	holdfastv1connect.UnimplementedCheckpointsServiceHandler
	*shop
}

func (c checkpointsOf) List(_ context.Context, r *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	from, _ := strconv.Atoi(r.PageToken)
	to := min(from+int(r.PageSize), len(c.made))
	res := &holdfastv1.CheckpointsServiceListResponse{Checkpoints: c.made[from:to]}
	if to < len(c.made) {
		res.NextPageToken = strconv.Itoa(to)
	}
	return res, nil
}

func (c checkpointsOf) Create(_ context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	if r.Group != "shop" {
		return nil, api.Errorf(api.NotFound, "see the groups with status", "no group %q here", r.Group)
	}
	p := &holdfastv1.Checkpoint{Id: strconv.Itoa(len(c.made) + 1), Tag: r.Tag, State: api.CheckpointGood}
	c.made = append(c.made, p)
	return &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: p}, nil
}

func (s *shop) handlers() api.Handlers {
	return api.Handlers{Status: statusOf{}, Checkpoints: checkpointsOf{shop: s}, Watch: s}
}

// Watch implements api.WatchHandler: how things stand, and then one change.
func (s *shop) Watch(_ context.Context, _ *holdfastv1.WatchServiceWatchRequest, tell func(*holdfastv1.WatchServiceWatchResponse) error) error {
	group := func(state string) []*holdfastv1.Group { return []*holdfastv1.Group{{Name: "shop", State: state}} }
	if err := tell(&holdfastv1.WatchServiceWatchResponse{Complete: true, Groups: group(api.StateProtected)}); err != nil {
		return err
	}
	return tell(&holdfastv1.WatchServiceWatchResponse{Groups: group(api.StateBehind)})
}

// serve answers on a unix socket, as a vra does, until the returned function is called.
func serve() (socket string, stop func()) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		panic(err)
	}
	socket = filepath.Join(dir, "vra.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- api.Serve(ctx, l, (&shop{}).handlers(), []int{os.Getuid()}, slog.New(slog.DiscardHandler))
	}()
	return socket, func() {
		cancel()
		if err := <-done; err != nil {
			panic(err)
		}
		os.RemoveAll(dir)
	}
}

// What is not known is absent: a lag of no value is not a lag of 0.
func ExampleDialUnix() {
	socket, stop := serve()
	defer stop()
	c := api.DialUnix(socket)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, err := c.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, g := range status.Groups {
		lag := "unknown"
		if g.LagSeconds != nil {
			lag = fmt.Sprintf("%.1f s", *g.LagSeconds)
		}
		fmt.Printf("%s is %s, lag %s\n", g.Name, g.State, lag)
	}
	// Output:
	// shop is protected, lag 1.5 s
	// mail is disconnected, lag unknown
}

// A key makes a call that is repeated, because nobody knows whether it arrived, happen once.
func ExampleNewKey() {
	socket, stop := serve()
	defer stop()
	c := api.DialUnix(socket)
	defer c.Close()
	ask := &holdfastv1.CheckpointsServiceCreateRequest{Group: "shop", Tag: "before-upgrade", IdempotencyKey: api.NewKey()}
	for range 2 {
		made, err := c.Checkpoints.Create(context.Background(), ask)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("checkpoint %s, %s\n", made.Checkpoint.Id, made.Checkpoint.Tag)
	}
	// Output:
	// checkpoint 1, before-upgrade
	// checkpoint 1, before-upgrade
}

// An error says what kind it is, what happened, and what to do next.
func ExampleAsFailure() {
	socket, stop := serve()
	defer stop()
	c := api.DialUnix(socket)
	defer c.Close()
	_, err := c.Checkpoints.Create(context.Background(), &holdfastv1.CheckpointsServiceCreateRequest{Group: "shoe"})
	if f := api.AsFailure(err); f != nil && f.Code == api.NotFound {
		fmt.Printf("%s: %s; %s\n", f.Code, f.Message, f.Next)
	}
	// Output: not_found: no group "shoe" here; see the groups with status
}

// Long lists come by pages, each of which says where the next one begins.
func ExampleClient_pages() {
	socket, stop := serve()
	defer stop()
	c := api.DialUnix(socket)
	defer c.Close()
	ctx := context.Background()
	for range 5 {
		if _, err := c.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Group: "shop", IdempotencyKey: api.NewKey()}); err != nil {
			fmt.Println(err)
			return
		}
	}
	for ask := (&holdfastv1.CheckpointsServiceListRequest{Group: "shop", PageSize: 2}); ; {
		page, err := c.Checkpoints.List(ctx, ask)
		if err != nil {
			fmt.Println(err)
			return
		}
		var ids []string
		for _, p := range page.Checkpoints {
			ids = append(ids, p.Id)
		}
		fmt.Println(ids)
		if ask.PageToken = page.NextPageToken; ask.PageToken == "" {
			return
		}
	}
	// Output:
	// [1 2]
	// [3 4]
	// [5]
}

// A watcher is told how things stand, and then what changes.
func ExampleWatchClient_Watch() {
	socket, stop := serve()
	defer stop()
	c := api.DialUnix(socket)
	defer c.Close()
	err := c.Watch.Watch(context.Background(), &holdfastv1.WatchServiceWatchRequest{}, func(m *holdfastv1.WatchServiceWatchResponse) error {
		fmt.Println("all:", m.Complete, m.Groups[0].Name, m.Groups[0].State)
		return nil
	})
	fmt.Println("it ended with", err)
	// Output:
	// all: true shop protected
	// all: false shop behind
	// it ended with <nil>
}

// Over the network a sidecar answers, by TLS with certificates on both sides; here, by a test's. The example of control/pairing's Trust.Client
// has those that a site makes.
func ExampleDialTLS() {
	around := func(_ context.Context, call api.Call, do func() error) error {
		fmt.Println("called:", call.Procedure)
		return do()
	}
	srv := httptest.NewUnstartedServer(api.Mux((&shop{}).handlers(), 1<<20, around))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	at := srv.Listener.Addr().String()
	known := x509.NewCertPool()
	known.AddCert(srv.Certificate())
	c := api.DialTLS(api.Addresses{Commands: at, Checkpoints: at, Logs: at}, &tls.Config{RootCAs: known, ServerName: "example.com"})
	defer c.Close()
	status, err := c.Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	fmt.Println(status.GetSite(), err)
	// Output:
	// called: /holdfast.v1.StatusService/Get
	// west <nil>
}
