package corrosion

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// klukai writes an answer in parts, on connections without TCP_NODELAY: what comes
// second is not to wait for the kernel to acknowledge the first, which takes it 40 ms.
func TestSecondPartIsNotKept(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetNoDelay(false)
		for r := bufio.NewReader(conn); ; {
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, q.Body)
			for _, part := range []string{
				"HTTP/1.1 200 OK\r\ncontent-length: 53\r\n\r\n" + `{"columns":["1"]}` + "\n",
				`{"row":[1,[1]]}` + "\n" + `{"eoq":{"time":0}}` + "\n",
			} {
				if _, err := io.WriteString(conn, part); err != nil {
					return
				}
			}
		}
	}()
	c, err := New(Config{URL: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	const n = 50
	began := time.Now()
	for range n {
		rows := 0
		if err := c.Query(t.Context(), SQL("SELECT 1"), func([]any) error { rows++; return nil }); err != nil || rows != 1 {
			t.Fatalf("%d rows, %v", rows, err)
		}
	}
	if took := time.Since(began); took > n*20*time.Millisecond {
		t.Errorf("%d answers took %v: the second parts were kept for 40 ms", n, took)
	} else {
		t.Logf("%d answers took %v", n, took)
	}
}
