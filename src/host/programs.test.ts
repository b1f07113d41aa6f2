import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { readConfig } from "../config/config.ts";
import { CommandError } from "./command.ts";
import { alwaysNeeded, judge, lackingRight, neededBy, type Program, programs } from "./programs.ts";

const iptables: Program = neededBy("iptables-nft")[0]!;
const nft = (version: string, json = "yes") =>
  `nftables v${version} (E.D.S.)\n  cli:\t\teditline\n  json:\t\t${json}\n  minigmp:\tno\n  libxtables:\tyes\n`;

/** What they say on Debian 11, 12 and 13, and where they are older. */
const answers: [program: Program, said: string, mistake?: string][] = [
  [programs.ip, "ip utility, iproute2-5.9.0, libbpf 0.3.0\n"],
  [programs.ip, "ip utility, iproute2-6.1.0, libbpf 1.1.2\n"],
  [programs.ip, "ip utility, iproute2-6.15.0, libbpf 1.5.0\n"],
  [programs.ip, "ip utility, iproute2-5.8.0\n", "ip 5.8.0 is too old: install iproute2 5.9 or later"],
  [
    programs.ip,
    "ip utility, iproute2-ss200127\n",
    'ip calls itself "ip utility, iproute2-ss200127": install iproute2 5.9 or later',
  ],
  [programs.wg, "wireguard-tools v1.0.20210223 - https://git.zx2c4.com/wireguard-tools/\n"],
  [programs.wg, "wireguard-tools v1.0.20210914 - https://git.zx2c4.com/wireguard-tools/\n"],
  [
    programs.wg,
    "wireguard-tools v1.0.20200513 - https://git.zx2c4.com/wireguard-tools/\n",
    "wg 1.0.20200513 is too old: install wireguard-tools 1.0.20210223 or later",
  ],
  [programs.nft, nft("0.9.8")],
  [programs.nft, nft("1.0.6")],
  [programs.nft, nft("1.1.3")],
  [programs.nft, nft("0.9.3"), "nft 0.9.3 is too old: install nftables 0.9.8 or later"],
  [
    programs.nft,
    nft("1.0.6", "no"),
    "nft 1.0.6 is built without JSON: install nftables 0.9.8 or later that has it",
  ],
  [iptables, "iptables v1.8.7 (nf_tables)\n"],
  [iptables, "iptables v1.8.11 (nf_tables)\n"],
  [iptables, "iptables v1.6.1\n", "iptables-nft 1.6.1 is too old: install iptables 1.8.7 or later"],
  [programs.ipset, "ipset v7.10, protocol version: 7\n"],
  [
    programs.ipset,
    "ipset v6.38, protocol version: 6\n",
    "ipset 6.38 is too old: install ipset 7.10 or later",
  ],
  [programs["wireguard-go"], "wireguard-go v0.0.20220316\n\nUserspace WireGuard daemon for linux-amd64.\n"],
];

for (const [program, said, mistake] of answers)
  test(`"${said.split("\n")[0]}"${mistake ? `: ${mistake}` : ""}`, () => {
    expect(judge(program, said)).toEqual(mistake ? [mistake] : []);
  });

describe("one that cannot be asked", () => {
  test("is not there", () => {
    const error = new CommandError(["nft", "-V"], { exitCode: 127, stderr: "cannot start nft" });
    expect(judge(programs.nft, error)).toEqual(["nft is not there: install nftables 0.9.8 or later"]);
  });

  test("does not work", () => {
    const error = new CommandError(["nft", "-V"], { exitCode: 127, stderr: "libnftables.so.1: cannot open" });
    expect(judge(programs.nft, error)).toEqual([
      "nft -V: exit code 127: libnftables.so.1: cannot open: install nftables 0.9.8 or later",
    ]);
  });
});

const names = (needed: Program[]) => needed.map(({ argv }) => argv[0]);

test.each<[env: Record<string, string>, expected: string[]]>([
  [{}, ["ip", "nft", "wg"]],
  [{ FIREWALL_ONLY: "1" }, ["ip", "nft"]],
  [{ NATIVE_ROUTING_IPV4: "1" }, ["ip", "nft", "wg"]],
  [{ NATIVE_ROUTING_IPV4: "1", NATIVE_ROUTING_IPV6: "1" }, ["ip", "nft"]],
  [{ WIREGUARD: "userspace", WIGGLENET_IFACE_NAME: "no-such-link" }, ["ip", "nft", "wg", "wireguard-go"]],
])("%j needs %j", (env, expected) => {
  expect(names(alwaysNeeded(readConfig({ NODE_NAME: "n1", ...env })))).toEqual(expected);
});

test("a backend's own", () => {
  expect(names(neededBy("nftables"))).toEqual([]);
  expect(names(neededBy("iptables-legacy"))).toEqual(["iptables-legacy", "ip6tables-legacy", "ipset"]);
});

test.each([
  ["00000000a80435fb", []],
  ["000001ffffffffff", []],
  [
    "0000000000001000",
    [
      "iptables-nft needs the capability NET_RAW: give it to the agent, see docs/configuration.md#nftables-and-iptables",
    ],
  ],
])("iptables with the capabilities %s", (effective, expected) => {
  const status = `Name:\twigglenet\nCapPrm:\t0000000000003000\nCapEff:\t${effective}\nCapBnd:\t0000000000003000\n`;
  expect(lackingRight("iptables-nft", status)).toEqual(expected);
});

test("docs/bare-metal.md has each of them, with its package and its lowest version", () => {
  const rows = readFileSync("docs/bare-metal.md", "utf8").matchAll(
    /^\| (`\S+).* \| `(\S+)`.* \| ([\d.]+) \| /gm,
  );
  const documented = [...rows].map(([, program = "", its, lowest]) => [
    program.replace(/[`,]/g, ""),
    its,
    lowest,
  ]);
  const all = [...Object.values(programs), { ...iptables, argv: ["iptables"] }];
  expect(documented.sort()).toEqual(
    all.map(({ argv, package: its, lowest }) => [argv[0], its, lowest]).sort(),
  );
});
