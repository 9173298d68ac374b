package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nameOwners sets the Owner of each socket that is not the kernel's own, to the
// best that can be known: the process that has it open, else the unit or
// container whose control group it belongs to, else the user. Without
// CAP_SYS_PTRACE other processes keep their descriptors to themselves.
func nameOwners(sockets []Socket) {
	nameProcesses(sockets)
	unnamed := func(s Socket) bool { return s.Owner == "" && s.Inode != 0 }
	if !slices.ContainsFunc(sockets, unnamed) {
		return
	}
	groups, root := socketGroups(), "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/unified"); err == nil {
		root += "/unified" // beside the hierarchies of version 1
	}
	for i, s := range sockets {
		if !unnamed(s) {
			continue
		}
		if u := unit(groupPath(root, groups[s.Inode])); u != "" {
			sockets[i].Owner = u
		} else if u, err := user.LookupId(strconv.Itoa(s.UID)); err == nil {
			sockets[i].Owner = fmt.Sprintf("a process of user %s", u.Username)
		}
	}
}

// nameProcesses sets the Owner of each socket that a readable process has open.
func nameProcesses(sockets []Socket) {
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

// socketGroups returns the ids of the control groups that sockets were made in,
// by the sockets' inodes; of none where the kernel does not tell (before 5.9).
func socketGroups() map[uint64]uint64 {
	groups := map[uint64]uint64{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.AddRawData(diagRequest(family, proto))
			_ = req.ExecuteIter(unix.NETLINK_SOCK_DIAG, unix.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
				if inode, group, ok := diagGroup(msg); ok {
					groups[inode] = group
				}
				return true
			})
		}
	}
	return groups
}

// Of include/uapi/linux/inet_diag.h.
const (
	diagRequestLen  = 56 // struct inet_diag_req_v2
	diagMessageLen  = 72 // struct inet_diag_msg, before its attributes
	diagInode       = 68 // offset of idiag_inode in it
	diagAttrGroupID = 21 // INET_DIAG_CGROUP_ID
)

// diagRequest asks for all sockets of one family and protocol.
func diagRequest(family, proto uint8) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, proto
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in every state
	return b
}

// diagGroup reads one answer; ok is false if it does not tell the group.
func diagGroup(msg []byte) (inode, group uint64, ok bool) {
	if len(msg) < diagMessageLen {
		return 0, 0, false
	}
	attrs, err := nl.ParseRouteAttr(msg[diagMessageLen:])
	if err != nil {
		return 0, 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type == diagAttrGroupID && len(a.Value) >= 8 {
			return uint64(binary.NativeEndian.Uint32(msg[diagInode:])), binary.NativeEndian.Uint64(a.Value), true
		}
	}
	return 0, 0, false
}

// groupPath returns the path of the control group with this id, which is its
// directory's inode, somewhere below root; empty if there is none.
func groupPath(root string, id uint64) (path string) {
	if id == 0 {
		return ""
	}
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // vanished, or not ours to read
		}
		if info, err := d.Info(); err == nil && info.Sys().(*syscall.Stat_t).Ino == id && p != root {
			path = p
			return fs.SkipAll
		}
		return nil
	})
	return path
}

// children describes the child processes of pid, in the words of process.
func children(pid int) (names []string) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil {
			continue // ended meanwhile
		}
		// proc_pid_stat(5): "pid (name) state ppid ...", and the name may be anything.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			names = append(names, process(child))
		}
	}
	return names
}

// process describes the process pid: "named (pid 812, named.service)".
func process(pid int) string {
	name := "a process"
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		name = strings.Map(func(r rune) rune { // a process may call itself anything
			if !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, string(b))
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
