// Package vhostuser offers a front.Device to a virtual machine as a virtio-blk disk
// whose queues lie in memory that the machine and this process share: the back end of
// the vhost-user-blk protocol, as QEMU and Cloud Hypervisor speak it from their side.
//
// What the server speaks: split queues, up to MaxQueues of them, indirect descriptors,
// EVENT_IDX, reads, writes, flush, discard, write-zeroes, the disk's name, and the
// table of requests in flight (INFLIGHT_SHMFD) that the front end keeps for us: a
// server that is killed and started again finds there what its predecessor had taken
// and not answered, and carries it out again, so that the guest sees a pause and no error.
// It does not speak: packed queues, live migration's dirty log, a queue without a kick.
//
// The guest is hostile, and so is the front end:
//   - Every index, address and length is its word. What lies in the queues is copied
//     before it is checked, and used from the copy.
//   - Memory that is taken away under us (a file cut short) ends the front end's
//     session and not the process.
//   - The device sees only ranges inside [0, Size()), and writes of 1 to front.MaxWrite
//     bytes. What it is given to write is in its own buffers, and what it reads goes to ours:
//     a guest may change its pages while they are being read or written. Only a lane that does not look at what it
//     reads (front.Lane) reads into the guest's memory, and writes from it what it keeps no copy of.
//   - A queue that does not hold together is not looked at again until the front end sets
//     it up anew; other queues and disks go on.
//   - Memory and goroutines are bounded: see limits.go for the sum.
//
// What a caller may rely on:
//   - Every Write is ended exactly once.
//   - A request is answered after the device returned, never before; one that is not
//     answered stands in the table in flight.
//   - A guest that did not take on flushing (a boot loader) is answered when its writes
//     are durable.
//   - After Serve returns no device call is running or will follow, and nothing of the
//     guest's memory is mapped.
//
// What serves a guest may be changed while it runs (Server.Hold): its requests wait for a moment, and go on with another device.
//
// How a queue runs: one goroutine takes requests off it. With a device that has lanes (front.Laned) it
// starts reads and writes itself and takes their ends, many by one system call, and tells the guest
// of them at once; of one that looks at what it reads only reads, of which it copies the payload. What a lane does not take, and everything of other devices, goes to workers, of
// which each queue has at most maxWorkers.
//
// The protocol's numbers are those of QEMU's docs/interop/vhost-user.rst and of the
// OASIS virtio 1.2 specification, sections 2.7 (split queues) and 5.2 (block device).
package vhostuser
