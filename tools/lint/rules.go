package lint

// topLevel is everything that may stand at the root beside names that begin with a dot.
var topLevel = []string{
	"datapath", "ioengine", "wire", "journal", "control", "bench", "cmd", "tools",
	"README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "SECURITY.md", "LICENSE", "Makefile", "go.mod", "go.sum",
	"bin", // built, never committed
}

// mayImport says which of our folders each folder may use. The longest matching
// folder rules; a folder may always use what is inside itself.
var mayImport = map[string][]string{
	"cmd":            {"datapath", "ioengine", "wire", "journal", "control", "bench"},
	"tools":          {"datapath", "ioengine", "wire", "journal", "control", "bench"},
	"bench":          {"datapath", "journal", "wire", "ioengine", "control/api", "control/config", "control/pairing"},
	"datapath":       {"wire", "journal", "ioengine", "control/api"},
	"journal":        {"wire/record", "ioengine"},
	"wire":           {"ioengine/buf", "ioengine/crc32c", "ioengine/invariant", "ioengine/wait"},
	"ioengine":       {},
	"control":        {"control", "ioengine/invariant", "ioengine/wait"},
	"control/api":    {"ioengine/invariant"},
	"control/config": {"ioengine/invariant"},
	// The sidecar stays lean: no data path, no store, no hypervisor.
	"control/sidecar": {"control/api", "control/config", "control/daemon", "control/pairing", "control/version", "ioengine/invariant"},
	"cmd/vra-sidecar": {"control/api", "control/config", "control/daemon", "control/pairing", "control/version", "control/sidecar", "control/systemd"},
}

// forTests are our own packages that no product code may use.
var forTests = []string{"ioengine/faultdisk", "wire/faultlink", "datapath/front/memdisk", "datapath/front/vhostuser/guest", "control/sidecar/monitor", "control/systemd/manager", "control/hypervisor/kvm/kvmtest"}

// usesForTests are the folders that may use them all the same.
var usesForTests = []string{"bench", "tools", "cmd/holdfast"}

// doors names the folders through which each outside library comes in.
var doors = map[string][]string{
	"github.com/pierrec/lz4":              {"wire/record", "bench/bars"},
	"github.com/dgraph-io/badger":         {"journal/index", "bench/bars"},
	"github.com/klauspost/reedsolomon":    {"journal/stripe"},
	"golang.org/x/sys":                    {"ioengine", "datapath/capture", "datapath/front", "datapath/spill", "control/api"},
	"github.com/vmware/govmomi":           {"control/hypervisor/vsphere"},
	"github.com/digitalocean":             {"control/hypervisor/kvm"},
	"github.com/prometheus/client_golang": {"datapath", "cmd/vra", "control/sidecar"},
	"connectrpc.com":                      {"control/api"},
	"google.golang.org/protobuf":          {"control/api", "tools/apidoc"},
	"github.com/spf13/cobra":              {"cmd/holdfast"},
	"go.yaml.in/yaml":                     {"control/config", "control/sidecar/monitor"},
	"modernc.org/sqlite":                  {"control/site"},
	"github.com/jackc/pgx":                {"control/site"},
}

// testOnly are libraries that only tests may use.
var testOnly = []string{"pgregory.net/rapid", "go.uber.org/goleak"}

// pure are packages that decide and never act: no files, no network, no clock, no chance.
var pure = []string{"datapath/group", "datapath/cut", "wire/cutword", "datapath/capture/activity/regions", "datapath/roster", "datapath/dirty", "datapath/budget", "wire/shape", "wire/reorder", "wire/breadth", "wire/delta", "journal/retain", "journal/failover", "control/plan", "control/recovery"}

// impure are what a pure package may not import, and the calls it may not make.
var (
	impureImports = []string{"os", "net", "syscall", "golang.org/x/sys", "io/ioutil", "crypto/rand"}
	impureCalls   = map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
		"rand": {"Int", "IntN", "Int64", "Int64N", "Uint32", "Uint64", "Float64", "Perm", "Shuffle", "N", "Intn"},
	}
)

// maxLines is where a file has stopped telling one idea.
const maxLines = 900
