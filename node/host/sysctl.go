package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	sysctlFile = "/etc/sysctl.d/90-jiji.conf"
	sysctlText = "# Written by jiji-node: containers reach those of other servers through this one.\nnet.ipv4.ip_forward = 1\n"
)

// forward lets IPv4 packets pass through the machine, now and after a boot, and
// stops redirects on link. Paths are below root, which is "/" except in tests.
func forward(root, link string) (changes []Change, err error) {
	was, err := setSysctl(root, "net/ipv4/ip_forward", "1")
	if err != nil {
		return nil, err
	}
	if was != "1" {
		changes = append(changes, Change{fmt.Sprintf("net.ipv4.ip_forward set to 1, was %s", was)})
	}

	file := filepath.Join(root, sysctlFile)
	switch wrote, err := writeDifferent(file, sysctlText); {
	case readOnly(err): // the live value is what counts; a start sets it again
		if was != "1" {
			changes = append(changes, Change{fmt.Sprintf("net.ipv4.ip_forward=1 lasts until the next boot: %v", err)})
		}
	case err != nil:
		return changes, fmt.Errorf("keep net.ipv4.ip_forward=1 after a boot: %w", err)
	case wrote:
		changes = append(changes, Change{sysctlFile + " written: net.ipv4.ip_forward=1 after a boot"})
	}

	was, err = setSysctl(root, "net/ipv4/conf/"+link+"/send_redirects", "0")
	switch {
	case readOnly(err): // a redirect into the tunnel harms nothing
	case err != nil:
		return changes, err
	case was != "0":
		changes = append(changes, Change{fmt.Sprintf("net.ipv4.conf.%s.send_redirects set to 0, was %s", link, was)})
	}
	return changes, nil
}

// setSysctl writes value unless it is there already, and returns what was.
func setSysctl(root, key, value string) (was string, err error) {
	path := filepath.Join(root, "proc/sys", key)
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	was = strings.TrimSpace(string(b))
	if was == value {
		return was, nil
	}
	name := strings.ReplaceAll(key, "/", ".")
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // never created
	if err == nil {
		_, err = f.WriteString(value + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return was, fmt.Errorf("%s is %s, expected %s, and cannot be set here (run `sysctl -w %s=%s` on the host): %w", name, was, value, name, value, err)
	}
	return was, nil
}

// writeDifferent gives the file at path this text, if it has another or is absent.
func writeDifferent(path, text string) (wrote bool, err error) {
	if b, err := os.ReadFile(path); err == nil && string(b) == text {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	temp := path + ".new" // not read by sysctl(8), which takes *.conf
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return false, err
	}
	if err := os.Rename(temp, path); err != nil {
		return false, errors.Join(err, os.Remove(temp))
	}
	return true, nil
}

// readOnly reports whether err means that this process may not write there.
func readOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}
