/**
 * Read this first: a cluster of two nodes, and everything that the first of them is told to become one of its nodes.
 * It is a dry run on a node that has nothing of ours yet. No root is needed, and nothing is run.
 */
import { expect, test } from "bun:test";
import pino from "pino";
import { dryExecutor } from "./cli/dry-run.ts";
import type { ClusterNodes } from "./cluster/nodes.ts";
import { readConfig } from "./config/config.ts";
import { families } from "./net/address.ts";
import { tableOf } from "./plan/fixtures/input.ts";
import { annotationsOf, fromAnnotations, type NodeObject } from "./plan/overlay/node.ts";
import { address, recordedNode } from "./reconcile/fixtures/node.ts";
import { noObserver } from "./reconcile/observer.ts";
import { Reconciler } from "./reconcile/reconciler.ts";

/** The node's own Node, as kubelet and the controller manager have made it. */
const node1: NodeObject = {
  metadata: { name: "node-1", annotations: {} },
  spec: { podCIDRs: ["10.244.1.0/24", "fd00:10:244:1::/64"] },
  status: {
    addresses: [
      { type: "InternalIP", address: "192.0.2.11" },
      { type: "InternalIP", address: "2001:db8::11" },
    ],
  },
};

/** The other one, as its agent has annotated it. */
const node2 = fromAnnotations({
  metadata: {
    name: "node-2",
    creationTimestamp: "2026-01-01T00:00:00Z",
    annotations: annotationsOf({
      publicKey: "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
      addresses: ["192.0.2.12", "2001:db8::12"],
      endpoints: ["192.0.2.12", "2001:db8::12"],
      podCidrs: ["10.244.2.0/24", "fd00:10:244:2::/64"],
      version: "1.0.0",
    }),
  },
} as NodeObject);

/** What the first node has: one link, and default routes. */
const eth0 = {
  ifname: "eth0",
  flags: ["UP"],
  mtu: 1500,
  addr_info: [address("192.0.2.11", 24), address("2001:db8::11", 64)],
};
const { reader } = recordedNode(
  {
    "ip -j -d address show": JSON.stringify([eth0]),
    "ip -4 -N -o route show table main": [
      "default via 192.0.2.1 dev eth0 ",
      "192.0.2.0/24 dev eth0 proto 2 scope 253 src 192.0.2.11 ",
    ].join("\n"),
    "ip -6 -N -o route show table main": [
      "2001:db8::/64 dev eth0 proto 2 metric 256 pref medium",
      "default via 2001:db8::1 dev eth0 metric 1024 pref medium",
    ].join("\n"),
    nft: '{ "nftables": [] }',
  },
  {
    "/proc/sys/net/ipv4/ip_forward": "0\n",
    "/proc/sys/net/ipv4/conf/default/forwarding": "0\n",
    "/proc/sys/net/ipv4/conf/eth0/forwarding": "0\n",
    "/proc/sys/net/ipv6/conf/all/forwarding": "0\n",
    "/proc/sys/net/ipv6/conf/default/accept_dad": "1\n",
  },
);

test("a cluster of two nodes: what the first is told", async () => {
  const config = { ...readConfig({ NODE_NAME: "node-1" }), families };
  const told: string[] = [];
  const reconciler = new Reconciler({
    config,
    nodes: {
      complete: true,
      whole: true,
      own: node1,
      ownIsThere: true,
      others: tableOf([node2]),
    } as unknown as ClusterNodes,
    executor: dryExecutor(reader, config, (text) => told.push(text)),
    publicKey: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    version: "1.0.0",
    reserved: [],
    observer: noObserver,
    wake: () => undefined,
    log: pino({ enabled: false }),
  });
  await reconciler.pass("start");
  expect([reconciler.unready(), reconciler.warnings()]).toEqual([undefined, []]);
  // After a change that is meant: npx bun test --update-snapshots ./src/golden.test.ts
  expect(`\n${told.join("\n")}\n`).toMatchInlineSnapshot(`
    "
    ip link add dev wigglenet type wireguard || wireguard-go wigglenet
    wg set wigglenet private-key /etc/wigglenet/private.key listen-port 24601
    echo 2 > /proc/sys/net/ipv4/conf/wigglenet/rp_filter
    echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
    ip link set dev wigglenet mtu 1420 up
    ip -batch - <<'END'
    address add 10.244.1.1/32 dev wigglenet
    address add fd00:10:244:1::1/128 dev wigglenet nodad
    END
    nft -f - <<'END'
    add table inet wigglenet
    add set inet wigglenet own-ipv4 { type ipv4_addr; flags interval; elements = { 10.244.1.0/24 }; }
    add set inet wigglenet own-ipv6 { type ipv6_addr; flags interval; elements = { fd00:10:244:1::/64 }; }
    add set inet wigglenet remote-ipv4 { type ipv4_addr; flags interval; elements = { 10.244.2.0/24 }; }
    add set inet wigglenet remote-ipv6 { type ipv6_addr; flags interval; elements = { fd00:10:244:2::/64 }; }
    add set inet wigglenet hosts-ipv4 { type ipv4_addr; }
    add set inet wigglenet hosts-ipv6 { type ipv6_addr; }
    add set inet wigglenet nodes-ipv4 { type ipv4_addr; }
    add set inet wigglenet nodes-ipv6 { type ipv6_addr; }
    add set inet wigglenet native-ipv4 { type ipv4_addr; }
    add set inet wigglenet native-ipv6 { type ipv6_addr; }
    add set inet wigglenet unencrypted-ipv4 { type ipv4_addr; flags interval; }
    add set inet wigglenet unencrypted-ipv6 { type ipv6_addr; flags interval; }
    add set inet wigglenet keep-ipv4 { type ipv4_addr; flags interval; }
    add set inet wigglenet keep-ipv6 { type ipv6_addr; flags interval; }
    add chain inet wigglenet prerouting { type filter hook prerouting priority -90; policy accept; }
    add chain inet wigglenet prerouting-ipv4
    add chain inet wigglenet prerouting-ipv6
    add chain inet wigglenet input { type filter hook input priority 0; policy accept; }
    add chain inet wigglenet input-ipv4
    add chain inet wigglenet input-ipv6
    add chain inet wigglenet forward { type filter hook forward priority 0; policy accept; }
    add chain inet wigglenet postrouting { type filter hook postrouting priority -150; policy accept; }
    add chain inet wigglenet postrouting-ipv4
    add chain inet wigglenet postrouting-ipv6
    add chain inet wigglenet srcnat { type nat hook postrouting priority 100; policy accept; }
    add chain inet wigglenet srcnat-ipv4
    add chain inet wigglenet srcnat-ipv6
    add chain inet wigglenet from-own-ipv4
    add chain inet wigglenet from-own-ipv6
    add chain inet wigglenet tunnelled
    add chain inet wigglenet tunnelled-ipv4
    add chain inet wigglenet tunnelled-ipv6
    add chain inet wigglenet guards
    add chain inet wigglenet guards-ipv4
    add chain inet wigglenet guards-ipv6
    add chain inet wigglenet from-pods
    add chain inet wigglenet from-pods-ipv4
    add chain inet wigglenet from-pods-ipv6
    add chain inet wigglenet outward-ipv4
    add chain inet wigglenet outward-ipv6
    add chain inet wigglenet from-tunnel
    add chain inet wigglenet from-tunnel-ipv4
    add chain inet wigglenet from-tunnel-ipv6
    add chain inet wigglenet to-nodes-ipv4
    add chain inet wigglenet to-nodes-ipv6
    add rule inet wigglenet prerouting iifname != "veth*" accept
    add rule inet wigglenet prerouting meta nfproto ipv4 goto prerouting-ipv4
    add rule inet wigglenet prerouting meta nfproto ipv6 goto prerouting-ipv6
    add rule inet wigglenet prerouting-ipv4 ip saddr @own-ipv4 goto from-own-ipv4
    add rule inet wigglenet prerouting-ipv4 fib saddr . iif oif missing counter drop
    add rule inet wigglenet prerouting-ipv6 ip6 saddr @own-ipv6 goto from-own-ipv6
    add rule inet wigglenet prerouting-ipv6 ip6 saddr fe80::/10 accept
    add rule inet wigglenet prerouting-ipv6 ip6 saddr ::/128 accept
    add rule inet wigglenet prerouting-ipv6 fib saddr . iif oif missing counter drop
    add rule inet wigglenet input iifname "lo" accept
    add rule inet wigglenet input iifname "veth*" accept
    add rule inet wigglenet input meta nfproto ipv4 goto input-ipv4
    add rule inet wigglenet input meta nfproto ipv6 goto input-ipv6
    add rule inet wigglenet input-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input-ipv4 iifname "wigglenet" accept
    add rule inet wigglenet input-ipv4 ip saddr @unencrypted-ipv4 accept
    add rule inet wigglenet input-ipv4 ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input-ipv6 icmpv6 type { 133, 134, 135, 136, 137 } accept
    add rule inet wigglenet input-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet input-ipv6 iifname "wigglenet" accept
    add rule inet wigglenet input-ipv6 ip6 saddr @unencrypted-ipv6 accept
    add rule inet wigglenet input-ipv6 ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet forward ct mark & 0x2000000 != 0 goto tunnelled
    add rule inet wigglenet forward goto guards
    add rule inet wigglenet postrouting oifname "wigglenet" accept
    add rule inet wigglenet postrouting meta nfproto ipv4 goto postrouting-ipv4
    add rule inet wigglenet postrouting meta nfproto ipv6 goto postrouting-ipv6
    add rule inet wigglenet postrouting-ipv4 oifname "veth*" ip daddr @own-ipv4 accept
    add rule inet wigglenet postrouting-ipv4 ip daddr @remote-ipv4 ip daddr != @hosts-ipv4 counter drop
    add rule inet wigglenet postrouting-ipv4 ip daddr @nodes-ipv4 goto to-nodes-ipv4
    add rule inet wigglenet postrouting-ipv6 oifname "veth*" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet postrouting-ipv6 ip6 daddr @remote-ipv6 ip6 daddr != @hosts-ipv6 counter drop
    add rule inet wigglenet postrouting-ipv6 ip6 daddr @nodes-ipv6 goto to-nodes-ipv6
    add rule inet wigglenet srcnat meta nfproto ipv4 goto srcnat-ipv4
    add rule inet wigglenet srcnat meta nfproto ipv6 goto srcnat-ipv6
    add rule inet wigglenet srcnat-ipv4 ct status & dnat != 0 ip saddr @remote-ipv4 ip daddr != @own-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ct status & dnat != 0 ip6 saddr @remote-ipv6 ip6 daddr != @own-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random
    add rule inet wigglenet from-own-ipv4 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv4 ct direction original ct status & snat != 0 ct reply ip daddr @own-ipv4 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv4 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction original ct status & snat != 0 ct reply ip6 daddr @own-ipv6 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet tunnelled iifname "veth*" oifname "wigglenet" ct state established accept
    add rule inet wigglenet tunnelled meta nfproto ipv4 goto tunnelled-ipv4
    add rule inet wigglenet tunnelled meta nfproto ipv6 goto tunnelled-ipv6
    add rule inet wigglenet tunnelled-ipv4 iifname "wigglenet" oifname "veth*" ct state established ip daddr @own-ipv4 accept
    add rule inet wigglenet tunnelled-ipv4 iifname "veth*" oifname != "wigglenet" ct direction original ct reply ip daddr @own-ipv4 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet tunnelled-ipv4 iifname "veth*" oifname != "wigglenet" ct direction reply ct status & dnat == 0 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet tunnelled-ipv4 goto guards
    add rule inet wigglenet tunnelled-ipv6 iifname "wigglenet" oifname "veth*" ct state established ip6 daddr @own-ipv6 accept
    add rule inet wigglenet tunnelled-ipv6 iifname "veth*" oifname != "wigglenet" ct direction original ct reply ip6 daddr @own-ipv6 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet tunnelled-ipv6 iifname "veth*" oifname != "wigglenet" ct direction reply ct status & dnat == 0 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet tunnelled-ipv6 goto guards
    add rule inet wigglenet guards iifname "veth*" goto from-pods
    add rule inet wigglenet guards iifname "wigglenet" goto from-tunnel
    add rule inet wigglenet guards meta nfproto ipv4 goto guards-ipv4
    add rule inet wigglenet guards meta nfproto ipv6 goto guards-ipv6
    add rule inet wigglenet guards-ipv4 ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 ip saddr != @unencrypted-ipv4 counter drop
    add rule inet wigglenet guards-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet guards-ipv6 ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 ip6 saddr != @unencrypted-ipv6 counter drop
    add rule inet wigglenet guards-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet from-pods oifname "wigglenet" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet from-pods oifname "wigglenet" accept
    add rule inet wigglenet from-pods meta nfproto ipv4 goto from-pods-ipv4
    add rule inet wigglenet from-pods meta nfproto ipv6 goto from-pods-ipv6
    add rule inet wigglenet from-pods-ipv4 oifname "veth*" ip daddr @own-ipv4 accept
    add rule inet wigglenet from-pods-ipv4 ct state invalid,untracked jump outward-ipv4
    add rule inet wigglenet from-pods-ipv4 ct direction original ct status & 0x18 == 0x8 jump outward-ipv4
    add rule inet wigglenet from-pods-ipv6 oifname "veth*" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet from-pods-ipv6 ct state invalid,untracked jump outward-ipv6
    add rule inet wigglenet from-pods-ipv6 ct direction original ct status & 0x18 == 0x8 jump outward-ipv6
    add rule inet wigglenet outward-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet outward-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet outward-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet outward-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet from-tunnel meta nfproto ipv4 goto from-tunnel-ipv4
    add rule inet wigglenet from-tunnel meta nfproto ipv6 goto from-tunnel-ipv6
    add rule inet wigglenet from-tunnel-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 oifname "wigglenet" accept
    add rule inet wigglenet from-tunnel-ipv4 ct status & dnat == 0 ct reply ip daddr != @own-ipv4 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 ct state invalid,untracked ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 oifname "veth*" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet from-tunnel-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 oifname "wigglenet" accept
    add rule inet wigglenet from-tunnel-ipv6 ct status & dnat == 0 ct reply ip6 daddr != @own-ipv6 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 ct state invalid,untracked ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 oifname "veth*" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet to-nodes-ipv4 ip saddr != @own-ipv4 accept
    add rule inet wigglenet to-nodes-ipv4 ct direction reply ct status & dnat != 0 accept
    add rule inet wigglenet to-nodes-ipv4 ct direction original ct reply ip daddr != @own-ipv4 counter accept
    add rule inet wigglenet to-nodes-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet to-nodes-ipv6 ip6 saddr != @own-ipv6 accept
    add rule inet wigglenet to-nodes-ipv6 ct direction reply ct status & dnat != 0 accept
    add rule inet wigglenet to-nodes-ipv6 ct direction original ct reply ip6 daddr != @own-ipv6 counter accept
    add rule inet wigglenet to-nodes-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    END
    wg set wigglenet peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= endpoint 192.0.2.12:24601 allowed-ips 10.244.2.0/24,192.0.2.12/32,2001:db8::12/128,fd00:10:244:2::/64
    ip -force -batch - <<'END'
    route replace unreachable 10.244.1.0/24 table main metric 4096 proto 246
    route replace unreachable 10.244.2.0/24 table 24600 metric 4096 proto 246
    route replace unreachable fd00:10:244:1::/64 table main metric 4096 proto 246
    route replace unreachable fd00:10:244:2::/64 table 24600 metric 4096 proto 246
    route replace 10.244.2.0/24 dev wigglenet table 24600 proto 246
    route replace 192.0.2.12/32 dev wigglenet table 24601 proto 246
    route replace 2001:db8::12/128 dev wigglenet table 24601 proto 246
    route replace fd00:10:244:2::/64 dev wigglenet table 24600 proto 246
    END
    ip -4 -force -batch - <<'END'
    rule add from all fwmark 0x1000000/0x1000000 lookup 24601 priority 2459 protocol 246
    rule add from all lookup 24600 priority 2460 protocol 246
    rule add from all to 10.244.1.0/24 lookup 254 priority 2461 protocol 246
    END
    ip -6 -force -batch - <<'END'
    rule add from all fwmark 0x1000000/0x1000000 lookup 24601 priority 2459 protocol 246
    rule add from all lookup 24600 priority 2460 protocol 246
    rule add from all to fd00:10:244:1::/64 lookup 254 priority 2461 protocol 246
    END
    nft -f - <<'END'
    add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.12 }; }
    add set inet wigglenet nodes-ipv6 { type ipv6_addr; elements = { 2001:db8::12 }; }
    END
    wg set wigglenet peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= persistent-keepalive 25
    wg set wigglenet peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= persistent-keepalive 0
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 1 > /proc/sys/net/ipv4/conf/default/forwarding
    echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding
    echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    kubectl patch node node-1 --type=merge -p '{"metadata":{"annotations":{"wigglenet/public-key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","wigglenet/node-ips":"[\\"192.0.2.11\\",\\"2001:db8::11\\"]","wigglenet/pod-cidrs":"[\\"10.244.1.0/24\\",\\"fd00:10:244:1::/64\\"]","wigglenet/agent":"{\\"version\\":\\"1.0.0\\",\\"nodeIps\\":\\"3671bf676bb2d8bf\\",\\"tunnelled\\":2}"}}}'
    install -D -m 0644 /dev/null /run/wigglenet/agent-in-sync
    install -D -m 0644 /dev/stdin /etc/cni/net.d/10-wigglenet.conflist <<'END'
    {
      "cniVersion": "1.0.0",
      "name": "wigglenet",
      "plugins": [
        {
          "type": "ptp",
          "ipMasq": false,
          "mtu": 1420,
          "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-ipam-state",
            "resolvConf": "/run/wigglenet/agent-in-sync",
            "routes": [
              {
                "dst": "0.0.0.0/0"
              },
              {
                "dst": "::/0"
              }
            ],
            "ranges": [
              [
                {
                  "subnet": "10.244.1.0/24",
                  "rangeStart": "10.244.1.1",
                  "rangeEnd": "10.244.1.254",
                  "gateway": "10.244.1.1"
                }
              ],
              [
                {
                  "subnet": "fd00:10:244:1::/64",
                  "rangeStart": "fd00:10:244:1::1",
                  "rangeEnd": "fd00:10:244:1:ffff:ffff:ffff:ffff",
                  "gateway": "fd00:10:244:1::1"
                }
              ]
            ]
          }
        },
        {
          "type": "portmap",
          "capabilities": {
            "portMappings": true
          }
        }
      ]
    }
    END
    "
  `);
});
