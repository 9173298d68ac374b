//go:build linux

package main

func measureNode(s *stage) *Part { return nil }
