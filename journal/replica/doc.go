// Package replica holds the disks of a group at the recovery site as they stood at
// the beginning of its log.
package replica
