package api

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"net/http"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// Client speaks to one server. Calls may run concurrently. Their errors are read by
// AsFailure.
type Client struct {
	Status      holdfastv1connect.StatusServiceClient
	Checkpoints holdfastv1connect.CheckpointsServiceClient
	Views       holdfastv1connect.ViewsServiceClient
	Stores      holdfastv1connect.StoresServiceClient
	Groups      holdfastv1connect.GroupsServiceClient
	Recovery    holdfastv1connect.RecoveryServiceClient
	Shaping     holdfastv1connect.ShapingServiceClient
	Links       LinksClient
	Watch       WatchClient // of a sidecar only, as is Logs
	Logs        LogsClient

	transport *http.Transport
}

// maxAnswer is the longest message that a client takes in, in bytes: a thousand groups, or ten
// thousand checkpoints, are a tenth of it.
const maxAnswer = 16 << 20

// DialUnix makes a client of the server at a unix socket. Nothing is connected
// before the first call; a server that restarts is found again.
func DialUnix(path string) *Client {
	return DialVia(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// DialVia makes a client whose connections, without TLS, come from dial.
func DialVia(dial func(context.Context) (net.Conn, error)) *Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols:          &protocols,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true, // it would only cost: what is sent stays on the machine
	}
	c := &Client{transport: t}
	const base = "http://vra" // the host is never looked up
	c.at(base, base, base, connect.WithAcceptCompression("gzip", nil, nil))
	return c
}

// Addresses are where a sidecar listens, each host:port.
type Addresses struct{ Commands, Checkpoints, Logs string }

// DialTLS makes a client of the sidecar at these addresses. trust says who we are and whom we take for it
// (see control/pairing). Nothing is connected before the first call; a server that restarts is found again.
func DialTLS(to Addresses, trust *tls.Config) *Client {
	t := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: headerWait}
	c := &Client{transport: t}
	c.at("https://"+to.Commands, "https://"+to.Checkpoints, "https://"+to.Logs)
	return c
}

// at makes the clients of the services, which are found at these places and asked so.
func (c *Client) at(commands, checkpoints, logs string, how ...connect.ClientOption) {
	h, limit := &http.Client{Transport: c.transport}, connect.WithClientOptions(append(how, connect.WithReadMaxBytes(maxAnswer))...)
	c.Status = holdfastv1connect.NewStatusServiceClient(h, commands, limit)
	c.Checkpoints = holdfastv1connect.NewCheckpointsServiceClient(h, checkpoints, limit)
	c.Views = holdfastv1connect.NewViewsServiceClient(h, commands, limit)
	c.Stores = holdfastv1connect.NewStoresServiceClient(h, commands, limit)
	c.Groups = holdfastv1connect.NewGroupsServiceClient(h, commands, limit)
	c.Recovery = holdfastv1connect.NewRecoveryServiceClient(h, commands, limit)
	c.Shaping = holdfastv1connect.NewShapingServiceClient(h, commands, limit)
	c.Links = LinksClient{holdfastv1connect.NewLinksServiceClient(h, commands, limit)}
	c.Watch = WatchClient{holdfastv1connect.NewWatchServiceClient(h, commands, limit)}
	c.Logs = LogsClient{holdfastv1connect.NewLogsServiceClient(h, logs, limit)}
}

// Close drops the client's connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// NewKey draws an idempotency key for one mutating call and its repetitions.
func NewKey() string { return rand.Text() }
