package pairing_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// west answers as the sidecar of a site with nothing in it.
type west struct {
	holdfastv1connect.UnimplementedStatusServiceHandler
}

func (west) Get(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	return &holdfastv1.StatusServiceGetResponse{Site: "west"}, nil
}

// site makes the files of an authority, and of certificates as `holdfast certificate` does.
func site(roles ...string) (dir string) {
	dir, err := os.MkdirTemp("", "hf")
	must(err)
	ca, err := pairing.NewCA("west", time.Now())
	must(err)
	must(ca.Save(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")))
	for _, role := range roles {
		leaf, err := ca.Issue(pairing.Identity{Role: role, ID: "one"}, time.Now(), time.Hour)
		must(err)
		must(leaf.Save(filepath.Join(dir, role+".pem"), filepath.Join(dir, role+"-key.pem")))
	}
	return dir
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// trusted is who has the certificate of a role in dir.
func trusted(dir, role string) *pairing.Trust {
	t, err := pairing.LoadTrust(filepath.Join(dir, "ca.pem"), filepath.Join(dir, role+".pem"), filepath.Join(dir, role+"-key.pem"))
	must(err)
	return t
}

// A program asks a sidecar with a certificate of the sidecar's site.
func ExampleTrust_Client() {
	dir := site(api.RoleSidecar, api.RoleMonitor)
	defer os.RemoveAll(dir)
	around := func(_ context.Context, call api.Call, do func() error) error { return do() }
	srv := httptest.NewUnstartedServer(api.Mux(api.Handlers{Status: west{}}, 1<<20, around))
	srv.EnableHTTP2, srv.TLS = true, trusted(dir, api.RoleSidecar).Server(api.RoleMonitor)
	srv.StartTLS()
	defer srv.Close()
	at := srv.Listener.Addr().String() // a sidecar has one for each: HOST:4006, HOST:4009, HOST:4005

	trust := trusted(dir, api.RoleMonitor)
	c := api.DialTLS(api.Addresses{Commands: at, Checkpoints: at, Logs: at}, trust.Client(api.RoleSidecar))
	defer c.Close()
	status, err := c.Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	fmt.Println(trust.Name(), "hears from", status.GetSite(), err)
	// Output: west/monitor/one hears from west <nil>
}
