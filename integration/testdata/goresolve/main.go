// Goresolve prints the addresses of a name, as Go's own resolver finds them.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	r := net.Resolver{PreferGo: true}
	ips, err := r.LookupNetIP(context.Background(), "ip", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, ip := range ips {
		fmt.Println(ip.Unmap())
	}
}
