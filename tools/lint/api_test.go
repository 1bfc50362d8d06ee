package lint

import (
	"os/exec"
	"testing"
)

// TestAPIPageFollows: each service, call, message and field of the API has a comment, and the page made of them is the present one.
func TestAPIPageFollows(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is not installed: ", err)
	}
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", "./tools/apidoc", "-check")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
