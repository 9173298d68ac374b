//go:build !linux

package tunnel

func fragmentable(uint16) error { return errNotLinux }
