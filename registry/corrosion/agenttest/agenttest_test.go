package agenttest

import (
	"context"
	"strings"
	"syscall"
	"testing"
)

func TestAgentLivesAndDies(t *testing.T) {
	a := Start(t, Options{Schema: "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL);", Token: "secret"})
	pid := a.Pid()
	if pid == 0 {
		t.Fatal("no process")
	}
	a.Stop(t, syscall.SIGKILL)
	if err := a.ask(context.Background()); err == nil {
		t.Error("answers after SIGKILL")
	}
	if a.Pid() != 0 {
		t.Error("process", pid, "is still there")
	}
	a.Restart(t)
	if a.Pid() == pid {
		t.Error("the same process after Restart")
	}
	a.Token = "other"
	if err := a.ask(context.Background()); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with another token: %v, want 401", err)
	}
}
