// Command firewall does what package firewall does, on the machine it runs on: the
// first argument is the function, standard input is Wanted. It prints the result.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/acidtib/jiji-node/node/host/firewall"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(function string) error {
	var w firewall.Wanted
	if err := json.NewDecoder(os.Stdin).Decode(&w); err != nil {
		return err
	}
	var (
		result any
		err    error
	)
	switch function {
	case "watch": // and repair, for ever
		fmt.Println("watching")
		return firewall.Watch(context.Background(), func() {
			changes, err := firewall.Apply(w)
			for _, c := range changes {
				fmt.Println(c.What)
			}
			if err != nil {
				fmt.Println(err)
			}
		})
	case "detect":
		result, err = firewall.Detect()
	case "apply":
		result, err = firewall.Apply(w)
	case "remove":
		result, err = firewall.Remove(w.Link, w.Bridge)
	case "obstacles":
		result, err = firewall.Obstacles(w)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}
