package agenttest

import "syscall"

// dieWithParent ends the agent when a test ends without cleaning up.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
