//go:build !linux

package agenttest

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
