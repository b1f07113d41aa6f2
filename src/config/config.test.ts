import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Config } from "./config.ts";
import { config, type Environment, mistakes } from "./fixtures/environment.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "wigglenet-config-"));
  writeFileSync(join(folder, "expression"), 'cidr("10.9.0.0/24")\n');
  writeFileSync(join(folder, "wrong"), "1 +\n");
});
afterAll(() => rmSync(folder, { recursive: true }));

const health = (text: string, hostname: string | undefined, port: number) => ({
  variable: "HEALTH_BIND_ADDR",
  text,
  hostname,
  port,
});

test("the name of the node is all that is needed", () => {
  expect(config()).toMatchInlineSnapshot(`
    {
      "allowedPodCidrs": [],
      "cniConfigPath": "/etc/cni/net.d/10-wigglenet.conflist",
      "families": [
        "ipv4",
        "ipv6",
      ],
      "filter": {
        "ipv4": false,
        "ipv6": false,
      },
      "firewallBackend": "auto",
      "firewallOnly": false,
      "flowtable": undefined,
      "health": undefined,
      "kubeconfig": undefined,
      "linkName": "wigglenet",
      "logLevel": "info",
      "masquerade": {
        "ipv4": true,
        "ipv6": true,
      },
      "masqueradeRandomFully": true,
      "metrics": undefined,
      "nativeRouting": {
        "ipv4": false,
        "ipv6": false,
      },
      "nodeIpInterfaces": [],
      "nodeName": "node-7",
      "nonMasqueradeCidrs": [],
      "podCidrExpression": undefined,
      "podCidrSource": {
        "ipv4": "spec",
        "ipv6": "spec",
      },
      "podCidrSourcePath": undefined,
      "podIpv6Dad": false,
      "port": 24601,
      "privateKeyPath": "/etc/wigglenet/private.key",
      "procSysNet": "/proc/sys/net",
      "resyncPeriod": 60,
      "tunnelFamilies": [
        "ipv4",
        "ipv6",
      ],
      "wireguard": "auto",
    }
  `);
});

test.each<[env: Environment, expected: Partial<Config>]>([
  [{ WIGGLENET_IFACE_NAME: "wg_0-a" }, { linkName: "wg_0-a" }],
  [{ WIGGLENET_WG_PORT: "51820" }, { port: 51820 }],
  [{ WIGGLENET_WG_PORT: "1" }, { port: 1 }],
  [{ WIGGLENET_WG_PORT: "65535" }, { port: 65535 }],
  [{ WIGGLENET_PRIVKEY_PATH: "/etc/key" }, { privateKeyPath: "/etc/key" }],
  [{ CNI_CONFIG_PATH: "/etc/cni/net.d/x.conflist" }, { cniConfigPath: "/etc/cni/net.d/x.conflist" }],
  [{ PROC_SYS_NET_PATH: "/proc/self/net/../../sys/net" }, { procSysNet: "/proc/self/net/../../sys/net" }],
  [{ NODE_IP_INTERFACES: "" }, { nodeIpInterfaces: [] }],
  [{ NODE_IP_INTERFACES: "eth0, eth1.7,,wlan0 " }, { nodeIpInterfaces: ["eth0", "eth1.7", "wlan0"] }],
  [{ WG_IP_FAMILY: "ipv4" }, { tunnelFamilies: ["ipv4"] }],
  [{ WG_IP_FAMILY: "ipv6" }, { tunnelFamilies: ["ipv6"] }],
  [{ WG_IP_FAMILY: "dualstack" }, { tunnelFamilies: ["ipv4", "ipv6"] }],
  [{ POD_CIDR_SOURCE_IPV4: "none" }, { podCidrSource: { ipv4: "none", ipv6: "spec" } }],
  [
    { POD_CIDR_SOURCE_IPV6: "file", POD_CIDR_SOURCE_PATH: "/etc/pod-cidrs" },
    { podCidrSource: { ipv4: "spec", ipv6: "file" }, podCidrSourcePath: "/etc/pod-cidrs" },
  ],
  [{ MASQUERADE_IPV6: "false" }, { masquerade: { ipv4: true, ipv6: false } }],
  [{ MASQUERADE_RANDOM_FULLY: "0" }, { masqueradeRandomFully: false }],
  [{ NON_MASQUERADE_CIDRS: "" }, { nonMasqueradeCidrs: [] }],
  [{ ALLOWED_POD_CIDRS: "" }, { allowedPodCidrs: [] }],
  [
    { ALLOWED_POD_CIDRS: "10.244.0.0/16, 2001:DB8::/32" },
    { allowedPodCidrs: ["10.244.0.0/16", "2001:db8::/32"] },
  ],
  [
    { NON_MASQUERADE_CIDRS: "192.168.7.9/16, 2001:DB8::/32,,10.0.0.0/8," },
    { nonMasqueradeCidrs: ["192.168.0.0/16", "2001:db8::/32", "10.0.0.0/8"] },
  ],
  [{ FILTER_IPV4: "1" }, { filter: { ipv4: true, ipv6: false } }],
  [{ FILTER_IPV6: "true" }, { filter: { ipv4: false, ipv6: true } }],
  [{ FIREWALL_BACKEND: "nftables" }, { firewallBackend: "nftables" }],
  [{ FIREWALL_BACKEND: "iptables" }, { firewallBackend: "iptables" }],
  [{ FIREWALL_BACKEND: "auto" }, {}],
  [{ NATIVE_ROUTING_IPV4: "1" }, { nativeRouting: { ipv4: true, ipv6: false } }],
  [
    { FIREWALL_ONLY: "true", POD_CIDR_SOURCE_IPV4: "none", POD_CIDR_SOURCE_IPV6: "none" },
    { firewallOnly: true, podCidrSource: { ipv4: "none", ipv6: "none" } },
  ],
  [{ WIREGUARD: "kernel" }, { wireguard: "kernel" }],
  [{ WIREGUARD: "userspace" }, { wireguard: "userspace" }],
  [{ POD_IPV6_DAD: "1" }, { podIpv6Dad: true }],
  [{ RESYNC_PERIOD: "5" }, { resyncPeriod: 5 }],
  [{ LOG_LEVEL: "debug" }, { logLevel: "debug" }],
  [{ KUBECONFIG: "/root/.kube/config" }, { kubeconfig: "/root/.kube/config" }],
  [{ KUBECONFIG: "" }, { kubeconfig: undefined }],
  [
    { ENABLE_FLOWTABLE: "1", FLOWTABLE_DEVICES: "eth0, wigglenet,veth*," },
    { flowtable: { devices: ["eth0", "wigglenet", "veth*"], packets: 128 } },
  ],
  [
    { ENABLE_FLOWTABLE: "1", FLOWTABLE_DEVICES: "eth0", FLOWTABLE_PACKET_THRESHOLD: "0" },
    { flowtable: { devices: ["eth0"], packets: 0 } },
  ],
  [
    { ENABLE_FLOWTABLE: "false", FLOWTABLE_DEVICES: "eth0", FIREWALL_BACKEND: "nftables" },
    { firewallBackend: "nftables" },
  ],
  [{ HEALTH_BIND_ADDR: "" }, { health: undefined }],
  [{ HEALTH_BIND_ADDR: "127.0.0.1:24602" }, { health: health("127.0.0.1:24602", "127.0.0.1", 24602) }],
  [{ HEALTH_BIND_ADDR: "[::1]:24602" }, { health: health("[::1]:24602", "::1", 24602) }],
  [{ HEALTH_BIND_ADDR: ":1" }, { health: health(":1", undefined, 1) }],
  // What is off has no port.
  [{ HEALTH_BIND_ADDR: ":9091" }, { health: health(":9091", undefined, 9091) }],
  [{ METRICS_BIND_ADDR: "127.0.0.1:1", METRICS_TLS_CERT_FILE: "/no/such" }, { metrics: undefined }],
  [
    { ENABLE_METRICS: "1" },
    {
      metrics: {
        address: {
          variable: "METRICS_BIND_ADDR",
          text: "127.0.0.1:9091",
          hostname: "127.0.0.1",
          port: 9091,
        },
        certificate: undefined,
      },
    },
  ],
  // What cannot be done yet may be switched off.
  [{ ENABLE_NETWORK_POLICY: "F" }, {}],
  // Others' variables are none of ours.
  [{ PATH: "/bin", WIGGLENET: "x" }, {}],
])("%j", (env, expected) => {
  const { podCidrExpression: _, ...given } = config(env);
  const { podCidrExpression: __, ...usual } = config();
  expect(given).toEqual({ ...usual, ...expected });
});

// strconv.ParseBool, so that the same manifest means the same to both kinds of agents.
test.each<[value: string, expected: boolean | undefined]>([
  ...["1", "t", "T", "true", "TRUE", "True"].map((value): [string, boolean] => [value, true]),
  ...["0", "f", "F", "false", "FALSE", "False"].map((value): [string, boolean] => [value, false]),
  ...["yes", "on", "tRUE", "2", " true", "no"].map((value): [string, undefined] => [value, undefined]),
])("a boolean of %j is %p", (value, expected) => {
  if (expected === undefined)
    expect(mistakes({ MASQUERADE_IPV4: value })).toEqual([
      `MASQUERADE_IPV4=${JSON.stringify(value)}: must be a boolean: 1, t, true, 0, f or false`,
    ]);
  else expect(config({ MASQUERADE_IPV4: value }).masquerade.ipv4).toBe(expected);
});

test("a kernel without IPv6: none of it is in the tunnel", () => {
  const procSysNet = mkdtempSync(join(tmpdir(), "wigglenet-config-"));
  mkdirSync(join(procSysNet, "ipv4"));
  expect(config({ PROC_SYS_NET_PATH: procSysNet })).toMatchObject({
    families: ["ipv4"],
    nativeRouting: { ipv4: false, ipv6: true },
  });
  rmSync(procSysNet, { recursive: true });
});

describe("expressions", () => {
  const evaluated = (env: Environment) =>
    config({ POD_CIDR_SOURCE_IPV4: "expression", ...env }).podCidrExpression?.evaluate({
      interfaces: {},
      node: { name: "node-7", labels: {}, annotations: {} },
    });

  test("in the environment", () => {
    expect(evaluated({ POD_CIDR_EXPRESSION: 'cidr("10.8.0.0/24")' })).toEqual(["10.8.0.0/24"]);
  });

  test("in a file", () => {
    expect(evaluated({ POD_CIDR_EXPRESSION_PATH: join(folder, "expression") })).toEqual(["10.9.0.0/24"]);
  });

  test("in both places", () => {
    const both = { POD_CIDR_EXPRESSION_PATH: join(folder, "expression"), POD_CIDR_EXPRESSION: "[]" };
    expect(mistakes({ POD_CIDR_SOURCE_IPV4: "expression", ...both })).toEqual([
      'POD_CIDR_EXPRESSION="[]": must not be set while POD_CIDR_EXPRESSION_PATH is: unset one of the two',
    ]);
  });

  test("in a file, and wrong", () => {
    const env = { POD_CIDR_SOURCE_IPV4: "expression", POD_CIDR_EXPRESSION_PATH: join(folder, "wrong") };
    expect(mistakes(env)).toEqual([expect.stringContaining(`POD_CIDR_EXPRESSION_PATH="${folder}/wrong": `)]);
  });

  test("not looked at where no source needs them", () => {
    expect(config({ POD_CIDR_EXPRESSION: "1 +" }).podCidrExpression).toBeUndefined();
  });
});
