package host

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// nameOwners sets the Owner of each socket that a readable process has open.
// What cannot be read is skipped: processes end, and without CAP_SYS_PTRACE
// those of others keep their descriptors to themselves.
func nameOwners(sockets []Socket) {
	if len(sockets) == 0 {
		return
	}
	eachDescriptor(func(pid int, fd, target string) (more bool) {
		text, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			return true
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
		if err != nil {
			return true
		}
		for i := range sockets {
			if sockets[i].Owner == "" && sockets[i].Inode == inode {
				sockets[i].Owner = process(pid)
			}
		}
		return slices.ContainsFunc(sockets, func(s Socket) bool { return s.Owner == "" && s.Inode != 0 })
	})
}

// tunOwner names the process that has the TUN device named link open; empty if
// none is found.
func tunOwner(link string) (owner string) {
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	eachDescriptor(func(pid int, fd, target string) (more bool) {
		if target != tunDevice {
			return true
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
		if err != nil || !slices.Contains(strings.Split(string(b), "\n"), "iff:\t"+link) {
			return true
		}
		if there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && there != here {
			return true // one of the same name, in another namespace
		}
		owner = process(pid)
		return false
	})
	return owner
}

// eachDescriptor calls visit with every open descriptor that may be read, until
// that returns false. Lower process ids come first: parents before children.
func eachDescriptor(visit func(pid int, fd, target string) (more bool)) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd/", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			target, err := os.Readlink(dir + fd.Name())
			if err == nil && !visit(pid, fd.Name(), target) {
				return
			}
		}
	}
}

// process describes the process pid: "named (pid 812, named.service)".
func process(pid int) string {
	name := "a process"
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		name = strings.TrimSpace(string(b))
	}
	where := ""
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil {
		for line := range strings.Lines(string(b)) {
			if u := unit(strings.TrimSpace(line)); u != "" {
				where = ", " + u
				break
			}
		}
	}
	return fmt.Sprintf("%s (pid %d%s)", name, pid, where)
}
