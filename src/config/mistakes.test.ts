/** What is wrong with an environment, and what would be right. */
import { describe, expect, test } from "bun:test";
import { readConfig } from "./config.ts";
import { type Environment, mistakes } from "./fixtures/environment.ts";

describe("mistakes: the variable, its value, what would be right", () => {
  test.each<[env: Environment, says: string]>([
    [
      { WIGGLENET_IFACE_NAME: "sixteen-letters-" },
      'WIGGLENET_IFACE_NAME="sixteen-letters-": must be a link name',
    ],
    [{ WIGGLENET_IFACE_NAME: "a.b" }, "must be a link name"],
    [{ WIGGLENET_IFACE_NAME: "../x" }, "must be a link name"],
    [
      { WIGGLENET_IFACE_NAME: "veth-wg" },
      'WIGGLENET_IFACE_NAME="veth-wg": must not be lo, nor begin with veth',
    ],
    [{ WIGGLENET_IFACE_NAME: "lo" }, "must not be lo"],
    [{ WIGGLENET_WG_PORT: "0" }, 'WIGGLENET_WG_PORT="0": must be a whole number from 1 to 65535'],
    [{ WIGGLENET_WG_PORT: "65536" }, "from 1 to 65535"],
    [{ WIGGLENET_WG_PORT: "0x10" }, "from 1 to 65535"],
    [{ WIGGLENET_WG_PORT: "1e3" }, "from 1 to 65535"],
    [{ WIGGLENET_WG_PORT: "-1" }, "from 1 to 65535"],
    [{ RESYNC_PERIOD: "0" }, 'RESYNC_PERIOD="0": must be a whole number from 1 to 86400'],
    [{ RESYNC_PERIOD: "1.5" }, "from 1 to 86400"],
    [{ RESYNC_PERIOD: "60s" }, "from 1 to 86400"],
    [{ WIGGLENET_PRIVKEY_PATH: "key" }, 'WIGGLENET_PRIVKEY_PATH="key": must be an absolute path'],
    [{ CNI_CONFIG_PATH: "x" }, 'CNI_CONFIG_PATH="x": must be an absolute path'],
    [
      { CNI_CONFIG_PATH: "/etc/cni/net.d/10-wigglenet.conf" },
      'CNI_CONFIG_PATH="/etc/cni/net.d/10-wigglenet.conf": must end in .conflist',
    ],
    [{ PROC_SYS_NET_PATH: "./net" }, "must be an absolute path"],
    [{ PROC_SYS_NET_PATH: "/proc/sys/vm" }, "must be where the host's /proc/sys/net is"],
    [{ NODE_IP_INTERFACES: "eth0,a b" }, 'NODE_IP_INTERFACES="eth0,a b": "a b" cannot be the name of a link'],
    [{ NODE_IP_INTERFACES: "eth0;eth1;eth2;eth3" }, "cannot be the name of a link"],
    [{ WG_IP_FAMILY: "IPv4" }, 'WG_IP_FAMILY="IPv4": must be one of ipv4, ipv6, dualstack'],
    [{ WIREGUARD: "go" }, 'WIREGUARD="go": must be one of auto, kernel, userspace'],
    [{ LOG_LEVEL: "loud" }, "must be one of trace, debug, info, warn, error"],
    [
      { POD_CIDR_SOURCE_IPV4: "Spec" },
      'POD_CIDR_SOURCE_IPV4="Spec": must be one of none, spec, file, expression',
    ],
    [{ POD_CIDR_SOURCE_IPV4: "file" }, 'POD_CIDR_SOURCE_PATH="": must be an absolute path'],
    [
      { POD_CIDR_SOURCE_IPV4: "file", POD_CIDR_SOURCE_PATH: "x" },
      'POD_CIDR_SOURCE_PATH="x": must be an absolute path',
    ],
    [{ POD_CIDR_SOURCE_IPV4: "none", POD_CIDR_SOURCE_IPV6: "none" }, "pods would have no address"],
    [{ POD_CIDR_SOURCE_IPV6: "expression" }, 'POD_CIDR_EXPRESSION="": must be a CEL expression'],
    [{ POD_CIDR_SOURCE_IPV6: "expression", POD_CIDR_EXPRESSION: "  " }, "must be a CEL expression"],
    [{ POD_CIDR_SOURCE_IPV6: "expression", POD_CIDR_EXPRESSION: "1 +" }, 'POD_CIDR_EXPRESSION="1 +": '],
    [
      { POD_CIDR_SOURCE_IPV6: "expression", POD_CIDR_EXPRESSION_PATH: "/no/such" },
      'POD_CIDR_EXPRESSION_PATH="/no/such": ENOENT',
    ],
    [
      { ENABLE_NETWORK_POLICY: "1" },
      'ENABLE_NETWORK_POLICY="1": this version enforces no NetworkPolicy yet: set it to 0, and have kube-network-policies (kubernetes-sigs) enforce them meanwhile, see docs/migration.md#networkpolicy',
    ],
    [{ ENABLE_FLOWTABLE: "maybe" }, "must be a boolean"],
    [
      { ENABLE_FLOWTABLE: "1", WIGGLENET_IFACE_NAME: "wg1" },
      'FLOWTABLE_DEVICES="": must list the links of the flows to offload, such as eth0,wg1,veth*',
    ],
    [
      { ENABLE_FLOWTABLE: "1", FLOWTABLE_DEVICES: "eth0", FIREWALL_BACKEND: "iptables" },
      'ENABLE_FLOWTABLE="1": flow tables are of nftables: set FIREWALL_BACKEND to nftables or auto, or this to 0',
    ],
    [{ FLOWTABLE_DEVICES: 'eth0,a"b' }, `"a\\"b" cannot be the name of a link`],
    [{ FLOWTABLE_PACKET_THRESHOLD: "-1" }, "from 0 to 999999999"],
    [
      { HEALTH_BIND_ADDR: "24602" },
      'HEALTH_BIND_ADDR="24602": must be an address and a port, as 127.0.0.1:9091 or [::1]:9091',
    ],
    ...[
      "::1:24602",
      "[127.0.0.1]:1",
      "[]:1",
      "127.0.0.1:0",
      "127.0.0.1:65536",
      "localhost:1",
      "010.0.0.1:1",
    ].map((value): [Environment, string] => [
      { HEALTH_BIND_ADDR: value },
      `HEALTH_BIND_ADDR="${value}": must be an address and a port`,
    ]),
    [{ METRICS_BIND_ADDR: ":" }, 'METRICS_BIND_ADDR=":": must be an address and a port'],
    [
      { HEALTH_BIND_ADDR: "[::1]:9091", ENABLE_METRICS: "1" },
      'HEALTH_BIND_ADDR="[::1]:9091": must have another port than METRICS_BIND_ADDR',
    ],
    [
      { ENABLE_METRICS: "1", METRICS_TLS_CERT_FILE: "/c" },
      'METRICS_TLS_KEY_FILE="": must be set too, as METRICS_TLS_CERT_FILE is',
    ],
    [
      { ENABLE_METRICS: "1", METRICS_TLS_KEY_FILE: "/k" },
      'METRICS_TLS_CERT_FILE="": must be set too, as METRICS_TLS_KEY_FILE is',
    ],
    [
      { ENABLE_METRICS: "1", METRICS_TLS_CLIENT_CA_FILE: "/ca" },
      'METRICS_TLS_CERT_FILE="": must be set too, as METRICS_TLS_CLIENT_CA_FILE is',
    ],
    [
      { ENABLE_METRICS: "1", METRICS_TLS_CERT_FILE: "/no/such", METRICS_TLS_KEY_FILE: "/k" },
      'METRICS_TLS_CERT_FILE="/no/such": cannot be read: ENOENT',
    ],
    [{ FILTER_IPV4: " " }, 'FILTER_IPV4=" ": must be a boolean: 1, t, true, 0, f or false'],
    [{ FILTER_IPV6: "yes" }, "must be a boolean"],
    [{ MASQUERADE_RANDOM_FULLY: "random" }, "must be a boolean"],
    [{ FIREWALL_BACKEND: "nft" }, 'FIREWALL_BACKEND="nft": must be one of auto, nftables, iptables'],
    [
      { NON_MASQUERADE_CIDRS: "10.0.0.0/8,10.1.2.3" },
      'NON_MASQUERADE_CIDRS="10.0.0.0/8,10.1.2.3": "10.1.2.3" is not a prefix such as 192.168.0.0/16',
    ],
    [{ NON_MASQUERADE_CIDRS: "10.0.0.0/33" }, '"10.0.0.0/33" is not a prefix'],
    [{ NON_MASQUERADE_CIDRS: "10.0.0.0/8 fd00::/8" }, "is not a prefix"],
    // All: ipset has no word for it, and a switch has.
    [{ ALLOWED_POD_CIDRS: "10.244.0.0" }, 'ALLOWED_POD_CIDRS="10.244.0.0": "10.244.0.0" is not a prefix'],
    [{ ALLOWED_POD_CIDRS: "10.0.0.0/8,::/0" }, '"::/0" is everything: leave it out'],
    [{ NON_MASQUERADE_CIDRS: "0.0.0.0/0" }, '"0.0.0.0/0" is everything: set MASQUERADE_IPV4=0 instead'],
    [{ NON_MASQUERADE_CIDRS: "fd00::/8,::/0" }, '"::/0" is everything: set MASQUERADE_IPV6=0 instead'],
  ])("%j", (env, says) => {
    const found = mistakes(env);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(says);
  });

  test("no name of the node", () => {
    expect(mistakes({}, {})).toEqual([`NODE_NAME="": must be the name of this node's Node object`]);
  });

  test("what others found is told with them", () => {
    expect(() => readConfig({ NODE_NAME: "n1", RESYNC_PERIOD: "x" }, ["a folder is missing"])).toThrow(
      /^wrong configuration:\n {2}a folder is missing\n {2}RESYNC_PERIOD=[^\n]*$/,
    );
  });

  test("all at once, in one message", () => {
    const env = {
      WIGGLENET_WG_PORT: "x",
      WG_IP_FAMILY: "x",
      MASQUERADE_IPV4: "x",
      MASQUERADE_IPV6: "x",
      RESYNC_PERIOD: "x",
      CNI_CONFIG_PATH: "x",
      LOG_LEVEL: "x",
    };
    const found = mistakes(env, {});
    expect(found.map((mistake) => mistake.split("=")[0]).sort()).toEqual(
      [...Object.keys(env), "NODE_NAME"].sort(),
    );
    expect(() => readConfig(env)).toThrow(`wrong configuration:\n  ${found.join("\n  ")}`);
  });
});

test("a value of any length is named by its beginning", () => {
  const [mistake = ""] = mistakes({ MASQUERADE_IPV4: "x".repeat(100_000) });
  expect(mistake).toStartWith('MASQUERADE_IPV4="xxx');
  expect(mistake.length).toBeLessThan(1_000);
});
