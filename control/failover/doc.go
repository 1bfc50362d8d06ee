// Package failover carries recovery's jobs out: it keeps them in files, and asks the target's vra for
// disks and a hypervisor for machines, step by step as package recovery decides.
//
//	FOLDER/r1/events    one JSON entry a line, each synced before what follows from it is done
//	FOLDER/r1/cancel    somebody wants the job, which another process carries out, to end
//	FOLDER/r1/machines  the hypervisor's
//	FOLDER/r1/*.png     pictures; NAME.serial: what machines said, once they are gone
//	FOLDER/r1/report.*  as text and JSON, once the job is over
//
// A job is carried out by whoever holds the lock of its events. When that process ends, however
// it does, another one opens the job and goes on: a line that was half written was never acted
// on, and a step of which no end is known is carried out again.
package failover
