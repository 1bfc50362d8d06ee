package kvm

import (
	"context"
	"errors"
	"fmt"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// EndDomain turns a domain off, of whomever, and returns once libvirt says that it is. Gracefully, its guest is asked
// by its agent where it has one, or else by its power button. A domain that libvirt does not have, or has no more since it
// was moved to another host, may run there: that is an error. It says whether it was off before.
func EndDomain(ctx context.Context, where config.Hypervisor, name string, how hypervisor.How) (was bool, err error) {
	l, err := NewLibvirt(where.Socket, where.URI, "/")
	if err != nil {
		return false, err
	}
	err = l.with(ctx, func(c *libvirt.Libvirt) error {
		d, err := endable(c, name)
		if err != nil {
			return err
		}
		before, err := stateOf(c, d)
		if err != nil {
			return err
		}
		was = before == hypervisor.Off
		if err := turnOff(ctx, c, d, how, libvirt.DomainShutdownDefault); err != nil {
			return err
		}
		state, reason, err := c.DomainGetState(d, 0)
		if err != nil {
			return err
		}
		return isOff(libvirt.DomainState(state), libvirt.DomainShutoffReason(reason))
	})
	if err != nil {
		return false, fmt.Errorf("domain %s: %w", name, err)
	}
	return was, nil
}

// MayEndDomain says why EndDomain could not end a domain so, or not tell whether it is off, and leaves it as it is. It says whether it is off.
func MayEndDomain(ctx context.Context, where config.Hypervisor, name string, how hypervisor.How) (off bool, err error) {
	l, err := NewLibvirt(where.Socket, where.URI, "/")
	if err != nil {
		return false, err
	}
	err = l.with(ctx, func(c *libvirt.Libvirt) error {
		d, err := endable(c, name)
		if err != nil {
			return err
		}
		state, reason, err := c.DomainGetState(d, 0)
		if err != nil {
			return err
		}
		off = asState(libvirt.DomainState(state)) == hypervisor.Off
		return mayEnd(libvirt.DomainState(state), libvirt.DomainShutoffReason(reason), how)
	})
	if err != nil {
		return false, fmt.Errorf("domain %s: %w", name, err)
	}
	return off, nil
}

// mayEnd says why a domain of which libvirt says so cannot be ended in that way.
func mayEnd(state libvirt.DomainState, reason libvirt.DomainShutoffReason, how hypervisor.How) error {
	switch now := asState(state); {
	case now == hypervisor.Off:
		return isOff(state, reason)
	case now == hypervisor.Paused && how != hypervisor.ByForce:
		return errPaused
	}
	return nil
}

// endable finds a domain that libvirt still has once it is off.
func endable(c *libvirt.Libvirt, name string) (libvirt.Domain, error) {
	d, err := c.DomainLookupByName(name)
	if libvirt.IsNotFound(err) {
		return d, errors.New("libvirt does not have it")
	}
	if err != nil {
		return d, err
	}
	kept, err := c.DomainIsPersistent(d)
	if err == nil && kept == 0 {
		err = errors.New("it is transient: once it is gone nobody can tell whether it is off or was moved to another host")
	}
	return d, err
}

// isOff says why a domain of which libvirt says so may run all the same.
func isOff(state libvirt.DomainState, reason libvirt.DomainShutoffReason) error {
	switch {
	case state != libvirt.DomainShutoff:
		return errors.New("it was started again")
	case reason == libvirt.DomainShutoffMigrated && !invariant.Planted("kvm/moved-is-off"):
		return errors.New("it was moved to another host")
	}
	return nil
}
