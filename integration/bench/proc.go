//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

// clockTick is the unit of times in /proc/PID/stat, the same on every Linux that Go
// runs on (USER_HZ).
const clockTick = 10 * time.Millisecond

// cpuTime returns how long programs have run on a processor, in user and kernel mode.
func (s *stage) cpuTime(programs ...*lab.Process) time.Duration {
	var sum time.Duration
	for _, p := range programs {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
		s.check("read the processor time of "+p.Name, err)
		ticks, err := parseStat(stat)
		s.check("read the processor time of "+p.Name, err)
		sum += time.Duration(ticks) * clockTick
	}
	return sum
}

// parseStat returns utime and stime of proc_pid_stat(5), together.
func parseStat(stat []byte) (ticks int64, err error) {
	// Fields 14 and 15, counted from after the command's last parenthesis.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat has %d fields after the command, want 13 or more", len(fields))
	}
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		ticks += n
	}
	return ticks, nil
}

// A memory is what a program has resident, in MB (10^6 bytes).
type memory struct{ now, peak float64 }

func (s *stage) memory(p *lab.Process) memory {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	s.check("read the memory of "+p.Name, err)
	m, err := parseStatus(string(status))
	s.check("read the memory of "+p.Name, err)
	return m
}

// parseStatus reads VmRSS and VmHWM of proc_pid_status(5).
func parseStatus(status string) (memory, error) {
	var m memory
	for name, to := range map[string]*float64{"VmRSS": &m.now, "VmHWM": &m.peak} {
		_, rest, found := strings.Cut(status, name+":")
		fields := strings.Fields(rest)
		if !found || len(fields) < 2 || fields[1] != "kB" {
			return memory{}, fmt.Errorf("status has no %s in kB", name)
		}
		kib, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return memory{}, fmt.Errorf("status: %s: %w", name, err)
		}
		*to = kib * 1024 / 1e6
	}
	return m, nil
}

// largest returns the largest of the programs' memories, by each measure.
func (s *stage) largest(programs ...*lab.Process) (m memory) {
	for _, p := range programs {
		v := s.memory(p)
		m.now, m.peak = max(m.now, v.now), max(m.peak, v.peak)
	}
	return m
}
