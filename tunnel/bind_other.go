//go:build !linux

package tunnel

import "golang.zx2c4.com/wireguard/conn"

// newBind returns a bind that is not open.
func newBind() conn.Bind { return conn.NewDefaultBind() }
