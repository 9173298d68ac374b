package firewall

import (
	"os"
	"path/filepath"
	"testing"
)

// A ufw that was told nothing of us is not asked, for it may be unable to answer: it was
// never set up, or iptables is not installed.
func TestUFWThatWasToldNothing(t *testing.T) {
	dir := t.TempDir()
	u := ufw{program: "/bin/false", files: []string{filepath.Join(dir, "user.rules"), filepath.Join(dir, "user6.rules")}}
	forget := func(want bool) {
		t.Helper()
		if changes, err := u.forget(nil); (err != nil) != want || len(changes) != 0 {
			t.Errorf("%v, %v", changes, err)
		}
	}
	write := func(file int, text string) {
		t.Helper()
		if err := os.WriteFile(u.files[file], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	forget(false)
	write(0, "### tuple ### allow udp 51820 0.0.0.0/0 any 0.0.0.0/0 in comment=6a696a692d6e6f646532\n")
	forget(false)
	write(1, "### tuple ### allow udp 51820 ::/0 any ::/0 in comment=6a696a692d6e6f6465\n-A ufw6-user-input -p udp --dport 51820 -j ACCEPT\n")
	forget(true)
}

// firewalld takes half a second to say what iptables shows, if it uses that.
func TestFirewalldIsNotAskedWhatIPTablesShows(t *testing.T) {
	const head = "*filter\n:INPUT ACCEPT [0:0]\n:JIJI-INPUT - [0:0]\n:INPUT_ZONES - [0:0]\n:IN_public_pre - [0:0]\n-A JIJI-INPUT -i jiji0 -p udp -m udp --dport 51820 -j ACCEPT\n"
	link, bridge := "-A INPUT_ZONES -i jiji0 -g IN_trusted\n", "-A INPUT_ZONES -i jiji-br0 -g IN_docker\n"
	port := "-A IN_public_pre -p udp -m udp --dport 51820 -j ACCEPT\n"
	w := Wanted{Link: "jiji0", Bridge: "jiji-br0", ListenPort: 51820}
	for rules, want := range map[string]bool{link + bridge + port: true, link + port: false, bridge + port: false, link + bridge: false, "": false} {
		o := observed{variants: map[Backend][]family{IPTablesNFT: {{rules: parseSave(head + rules + "COMMIT\n")}}}}
		if got := o.firewalldKnows(w); got != want {
			t.Errorf("%v with\n%s", got, rules)
		}
	}
}

// A firewalld that does not run and keeps nothing of ours is left alone.
func TestFirewalldThatWasToldNothing(t *testing.T) {
	dir := t.TempDir()
	f := firewalld{program: "/bin/false", dir: dir}
	for text, want := range map[string]bool{
		`<zone><interface name="jiji00"/><rule priority="-51"/></zone>`: false,
		`<zone><interface name="jiji0"/></zone>`:                        true,
		`<zone><rule priority="-5182"><accept/></rule></zone>`:          true,
	} {
		if err := os.WriteFile(filepath.Join(dir, "public.xml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if told, err := f.told([]string{"jiji0"}); told != want || err != nil {
			t.Errorf("%s: %v, %v", text, told, err)
		}
	}
	f.dir = filepath.Join(dir, "none")
	if changes, err := f.forget([]string{"jiji0"}); len(changes) > 0 || err != nil {
		t.Errorf("without files: %v, %v", changes, err)
	}
}
