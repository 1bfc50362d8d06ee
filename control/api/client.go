package api

import (
	"context"
	"crypto/rand"
	"net"
	"net/http"

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
	Shaping     holdfastv1connect.ShapingServiceClient
	Links       LinksClient
	Recovery    holdfastv1connect.RecoveryServiceClient

	transport *http.Transport
}

// DialUnix makes a client of the server at a unix socket. Nothing is connected
// before the first call; a server that restarts is found again.
func DialUnix(path string) *Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	c := &http.Client{Transport: t}
	const base = "http://vra" // the host is never looked up
	return &Client{
		Status:      holdfastv1connect.NewStatusServiceClient(c, base),
		Checkpoints: holdfastv1connect.NewCheckpointsServiceClient(c, base),
		Views:       holdfastv1connect.NewViewsServiceClient(c, base),
		Stores:      holdfastv1connect.NewStoresServiceClient(c, base),
		Groups:      holdfastv1connect.NewGroupsServiceClient(c, base),
		Shaping:     holdfastv1connect.NewShapingServiceClient(c, base),
		Recovery:    holdfastv1connect.NewRecoveryServiceClient(c, base),
		Links:       LinksClient{holdfastv1connect.NewLinksServiceClient(c, base)},
		transport:   t,
	}
}

// Close drops the client's connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// NewKey draws an idempotency key for one mutating call and its repetitions.
func NewKey() string { return rand.Text() }
