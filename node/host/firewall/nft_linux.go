package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

var hookNumbers = map[hook]*nftables.ChainHook{
	prerouting:  nftables.ChainHookPrerouting,
	input:       nftables.ChainHookInput,
	forward:     nftables.ChainHookForward,
	leaving:     nftables.ChainHookPostrouting,
	postrouting: nftables.ChainHookPostrouting,
}

// exprs is r as the kernel runs it.
func (r rule) exprs() (e []expr.Any) {
	const reg = unix.NFT_REG_1
	equal := func(data []byte) { e = append(e, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}) }
	meta := func(key expr.MetaKey, data []byte) {
		e = append(e, &expr.Meta{Key: key, Register: reg})
		equal(data)
	}
	ct := func(key expr.CtKey, bits uint32) {
		e = append(e,
			&expr.Ct{Key: key, Register: reg},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)})
	}

	// The family comes first: what follows reads its header.
	if r.v4 != r.v6 {
		family := byte(unix.NFPROTO_IPV4)
		if r.v6 {
			family = unix.NFPROTO_IPV6
		}
		meta(expr.MetaKeyNFPROTO, []byte{family})
	}
	if r.in != "" {
		meta(expr.MetaKeyIIFNAME, interfaceName(r.in))
	}
	if r.out != "" {
		meta(expr.MetaKeyOIFNAME, interfaceName(r.out))
	}
	address := func(p netip.Prefix, offset4, offset6 uint32) {
		if !p.IsValid() {
			return
		}
		size, offset := uint32(4), offset4
		if p.Addr().Is6() {
			size, offset = 16, offset6
		}
		e = append(e, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
		if !p.IsSingleIP() {
			e = append(e, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size,
				Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)})
		}
		equal(p.Addr().AsSlice())
	}
	address(r.src, 12, 8)
	address(r.dst, 16, 24)
	if r.proto != "" {
		proto := byte(unix.IPPROTO_UDP)
		if r.proto == "tcp" {
			proto = unix.IPPROTO_TCP
		}
		meta(expr.MetaKeyL4PROTO, []byte{proto})
		e = append(e, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
		equal(binary.BigEndian.AppendUint16(nil, r.port))
	}
	switch r.state {
	case established:
		ct(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	case redirected:
		ct(expr.CtKeySTATUS, 1<<5) // IPS_DST_NAT
	}

	// Source and destination are the same register for a kernel before 5.6, too.
	snat := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegAddrMax: reg}
	switch r.do {
	case accept:
		if r.mark {
			bits := binaryutil.NativeEndian.PutUint32(EngineMark)
			e = append(e, &expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
				&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(EngineMark)), Xor: bits},
				&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
		}
		e = append(e, &expr.Verdict{Kind: expr.VerdictAccept})
	case leave:
		e = append(e, &expr.Verdict{Kind: expr.VerdictReturn})
	case drop:
		e = append(e, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	case keep:
		e = append(e, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, snat)
	case rewrite:
		e = append(e, &expr.Immediate{Register: reg, Data: r.to.AsSlice()}, snat)
	}
	return e
}

// interfaceName is a name as the kernel compares it.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// fingerprint brings a rule of the kernel, or one for it, into a form that can be
// compared.
func fingerprint(exprs []expr.Any) (string, error) {
	var b bytes.Buffer
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter: // what it has counted is no difference
			b.WriteString("counter;")
		case *expr.NAT: // the kernel says the flag of "to addresses" or does not
			fmt.Fprintf(&b, "nat %d %d %d %d %d %d;", e.Type, e.Family, e.RegAddrMin, e.RegAddrMax, e.RegProtoMin, e.RegProtoMax)
		default:
			data, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%x;", data)
		}
	}
	return b.String(), nil
}

// readNFT reads our table and the names of all tables, or says why the kernel has no
// nftables.
func readNFT() (t kernelTable, tables []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return t, nil, fmt.Errorf("open nftables: %w", err)
	}
	list, err := conn.ListTables()
	if err != nil {
		return t, nil, fmt.Errorf("read nftables: %w", err)
	}
	var own *nftables.Table
	for _, l := range list {
		tables = append(tables, familyName(l.Family)+" "+l.Name)
		if l.Name == tableName && l.Family == nftables.TableFamilyINet {
			own = l
		}
	}
	if own == nil {
		return t, tables, nil
	}
	t.dormant = own.Flags != 0
	t.chains = []chainState{}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return t, nil, fmt.Errorf("read nftables' chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		state := chainState{base: base{hook: 255, name: c.Name, kind: string(c.Type)}}
		if c.Hooknum != nil && c.Priority != nil {
			state.priority = int32(*c.Priority)
			for _, b := range bases {
				if b.name == c.Name && *hookNumbers[b.hook] == *c.Hooknum {
					state.hook = b.hook
				}
			}
		}
		state.policyDrop = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		rules, err := conn.GetRules(own, c)
		if err != nil {
			return t, nil, fmt.Errorf("read nftables' chain inet %s %s: %w", tableName, c.Name, err)
		}
		for _, r := range rules {
			print, err := fingerprint(r.Exprs)
			if err != nil {
				return t, nil, fmt.Errorf("read a rule of nftables' chain inet %s %s: %w", tableName, c.Name, err)
			}
			state.rules = append(state.rules, print)
		}
		t.chains = append(t.chains, state)
	}
	return t, tables, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprint(f)
}

// writeNFT replaces our table, in one transaction.
func writeNFT(rules []rule, there bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if there {
		conn.DelTable(table)
	}
	conn.AddTable(table)
	policy := nftables.ChainPolicyAccept
	for _, b := range bases {
		chain := conn.AddChain(&nftables.Chain{
			Name: b.name, Table: table, Type: nftables.ChainType(b.kind), Policy: &policy,
			Hooknum: hookNumbers[b.hook], Priority: nftables.ChainPriorityRef(nftables.ChainPriority(b.priority)),
		})
		for _, r := range rules {
			if r.hook != b.hook {
				continue
			}
			add := &nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs()}
			if r.note != "" {
				add.UserData = userdata.AppendString(nil, userdata.TypeComment, r.note)
			}
			conn.AddRule(add)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nftables' table inet %s: %w", tableName, err)
	}
	return nil
}

// deleteNFT removes our table.
func deleteNFT() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables' table inet %s: %w", tableName, err)
	}
	return nil
}

// nftShowsFirewalldKnows reports whether nftables shows that firewalld was told of the
// interfaces and the port of w. It asks for less than firewalld does: where it
// cannot tell, false.
func nftShowsFirewalldKnows(w Wanted) bool {
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false
	}
	want := map[string]bool{string(interfaceName(w.Link)): true}
	if w.Bridge != "" {
		want[string(interfaceName(w.Bridge))] = true
	}
	if w.ListenPort != 0 {
		want[string(binary.BigEndian.AppendUint16(nil, w.ListenPort))] = true
	}
	for _, c := range chains {
		if c.Table.Name != "firewalld" {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return false
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if e, ok := e.(*expr.Cmp); ok {
					delete(want, string(e.Data))
				}
			}
		}
	}
	return len(want) == 0
}
