package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// The socket on which wg(8) speaks to a userspace device. The listener of the
// module's own ipc package does the same, except that it ends when somebody
// deletes the socket file or changes its mode.

// socketDir is where wg(8) looks for <interface>.sock.
const socketDir = "/var/run/wireguard"

// A socket is the listening end. Its methods are for one goroutine at a time.
type socket struct {
	path string
	l    *net.UnixListener
	file fs.FileInfo // of path when it was made
}

// listenSocket makes the socket at path with mode 0600. One that a dead process
// left there is replaced, one that answers is an error.
func listenSocket(path string) (*socket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: makePrivate}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	s := &socket{path: path, l: l.(*net.UnixListener)}
	s.l.SetUnlinkOnClose(false) // by name alone it might remove another's
	if s.file, err = os.Lstat(path); err != nil {
		s.l.Close()
		return nil, err
	}
	return s, nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket: remove it", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("%s is served by another process: end it, or choose another interface name", path)
	}
	return os.Remove(path)
}

// inPlace reports whether path still leads to this socket.
func (s *socket) inPlace() bool {
	fi, err := os.Lstat(s.path)
	return err == nil && os.SameFile(fi, s.file)
}

// Close closes the socket and removes its file, if the file is still this one.
func (s *socket) Close() error {
	err := s.l.Close()
	if s.inPlace() {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

const (
	clientLimit = 5 * time.Second // for a client to send the rest of a request, and to take the answer
	maxRequest  = 64 << 20        // bytes; one of 65,536 peers has about a third
)

// answer answers the requests of a client until it leaves, and closes c. Left to
// itself the device reads a request line by line, and nobody else may read or
// change it meanwhile: one client that stops in the middle would stop all. So
// requests are complete before the device sees them, and answers before they are
// sent.
func answer(dev *device.Device, c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		request, err := readRequest(c, r)
		if err != nil {
			return
		}
		e := exchange{Conn: c, in: bytes.NewReader(request)}
		dev.IpcHandle(&e)
		c.SetWriteDeadline(time.Now().Add(clientLimit))
		if _, err := c.Write(e.out.Bytes()); err != nil || e.out.Len() == 0 {
			return // to no operation at all the device says nothing
		}
	}
}

// readRequest reads up to an empty line. A client may wait with the first line.
func readRequest(c net.Conn, r *bufio.Reader) ([]byte, error) {
	var request []byte
	c.SetReadDeadline(time.Time{})
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return nil, err // lines of this protocol fit into the buffer
		}
		if request == nil {
			c.SetReadDeadline(time.Now().Add(clientLimit))
		}
		request = append(request, line...)
		if len(line) == 1 {
			return request, nil
		}
		if len(request) > maxRequest {
			return nil, fmt.Errorf("request longer than %d bytes", maxRequest)
		}
	}
}

// An exchange is one request and its answer, as a connection.
type exchange struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (e *exchange) Read(b []byte) (int, error)  { return e.in.Read(b) }
func (e *exchange) Write(b []byte) (int, error) { return e.out.Write(b) }
func (e *exchange) Close() error                { return nil }
