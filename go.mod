module github.com/holdfast-dr/holdfast

go 1.26.0

require (
	// The sidecar's services: HTTP/2, gRPC and plain JSON for curl from one definition. Door: control/api.
	connectrpc.com/connect v1.21.1
	// The standard health service of gRPC, as orchestrators and load balancers ask it. Door: control/api.
	connectrpc.com/grpchealth v1.4.0
	// Reflection, so that grpcurl needs no .proto files. Door: control/api.
	connectrpc.com/grpcreflect v1.3.0
	// The catalogue of checkpoints, segments and runs: a sorted map on disk that is rebuilt when lost. Door: journal/index.
	github.com/dgraph-io/badger/v4 v4.9.6
	// Parity at tens of GB/s: Reed-Solomon in vector instructions is not ours to write. Door: journal/stripe.
	github.com/klauspost/reedsolomon v1.14.2
	// The words of libvirt's daemon, of which there are hundreds, made from its own protocol file. Door: control/hypervisor/kvm.
	github.com/digitalocean/go-libvirt v0.0.0-20240812180835-9c6c0a310c6c
	// Opens one in sixteen of the blocks that our LZ4 encoder made before they are sent: not what made them says that they are right. Doors: wire/record, bench/bars.
	github.com/pierrec/lz4/v4 v4.1.33
	// Metrics in the form that every monitoring system reads. Doors: datapath, cmd/vra.
	github.com/prometheus/client_golang v1.25.0
	// The command tree, help, completion and man pages of the user's command. Door: cmd/holdfast.
	github.com/spf13/cobra v1.10.2
	// Goroutine leaks seen by tests.
	go.uber.org/goleak v1.3.0
	// Configuration files, with unknown keys refused. Door: control/config.
	go.yaml.in/yaml/v3 v3.0.6
	// System calls the standard library lacks: O_DIRECT, statx, memfd, eventfd, what the processor can. Doors: ioengine, datapath/capture.
	golang.org/x/sys v0.49.0
	// The messages of control/api, generated. Door: control/api.
	google.golang.org/protobuf v1.36.12
	// Property tests that shrink what they find.
	pgregory.net/rapid v1.3.0
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/cpuguy83/go-md2man/v2 v2.0.6 // indirect
	github.com/dgraph-io/ristretto/v2 v2.2.0 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/go-logr/logr v1.4.3 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/google/flatbuffers v25.2.10+incompatible // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/klauspost/compress v1.20.1 // indirect
	github.com/klauspost/cpuid/v2 v2.3.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/russross/blackfriday/v2 v2.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel v1.41.0 // indirect
	go.opentelemetry.io/otel/metric v1.41.0 // indirect
	go.opentelemetry.io/otel/trace v1.41.0 // indirect
	golang.org/x/crypto v0.26.0 // indirect
)
