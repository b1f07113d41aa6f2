/** Kernels that lack a module of the firewall: which backend is taken, and what is said. */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { repository } from "./lab/cache.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";

const binary = `${repository}/dist/wigglenet`;
const folder = "/opt/lacking";
let lab: Lab;
let node: LightNode;
let pods: [Pod, Pod];

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2 });
  const [first, second] = lab.nodes as [LightNode, LightNode];
  node = first;
  pods = [await first.pod("p"), await second.pod("p")];
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());
beforeEach(async () => {
  if (node.agentRuns) await node.stopAgent();
  await node.$`rm -rf ${folder} && mkdir -p ${folder}`;
});

const env = () => ({ PATH: `${folder}:${node.agentEnv().PATH}`, HEALTH_BIND_ADDR: "127.0.0.1:24602" });

async function standIn(name: string, script: string): Promise<void> {
  await node.write(`${folder}/${name}`, `#!/bin/sh\n${script}\n`);
  await node.$`chmod +x ${`${folder}/${name}`}`;
}

/** As such a kernel refuses rules with an expression that it does not know, each by its line. */
async function nftWithout(expression: string): Promise<void> {
  const refuse = `/ ${expression} / { print "/dev/stdin:" NR ":33-62: Error: Could not process rule: No such file or directory\\n" $0; bad = 1 }`;
  await standIn(
    "nft",
    `case "$*" in *"-f -") ;; *) exec /usr/sbin/nft "$@" ;; esac
awk '${refuse} { print > "/run/nft-input" } END { exit bad }' >&2 || exit 1
exec /usr/sbin/nft "$@" < /run/nft-input`,
  );
}

/** As iptables speaks of an extension that its kernel does not have, when it is asked, and when it is to add a rule. */
async function iptablesWithout(variant: "nft" | "legacy", extension: string): Promise<void> {
  for (const tool of ["iptables", "ip6tables"])
    await standIn(
      `${tool}-${variant}-restore`,
      `cat > /run/iptables-input-$$
if grep -qEe '-[mj] ${extension}( |$)' /run/iptables-input-$$; then
  echo "Warning: Extension ${extension} revision 0 not supported, missing kernel module?" >&2
  case "$*" in *--test*) ;; *)
    echo "${tool}-restore v1.8.9 (nf_tables): line 3: RULE_APPEND failed (No such file or directory): rule in chain X" >&2
    exit 4 ;;
  esac
fi
exec /usr/sbin/${tool}-${variant}-restore "$@" < /run/iptables-input-$$`,
    );
}

async function backendNow(): Promise<string[]> {
  const script = `for variant in nft legacy; do iptables-$variant-save 2> /dev/null | grep -q WIGGLENET- && echo iptables-$variant; done
nft list table inet wigglenet > /dev/null 2>&1 && echo nftables; true`;
  return (await node.$`/bin/sh -c ${script}`).stdout.trim().split("\n");
}

const readyz = async () => (await node.$`curl -s http://127.0.0.1:24602/readyz`).stdout;
const logged = () => JSON.stringify(node.agentLog());

test("one of nftables: iptables is taken, or the module is named", async () => {
  await nftWithout("fib");
  const remedy = "modprobe -a nft_fib_inet nft_fib_ipv4 nft_fib_ipv6";
  const dry = ["/bin/sh", "-c", `${binary} --dry-run 2>&1`];
  const paper = await node.namespace.run(dry, { env: node.agentEnv(env()) });
  for (const part of [remedy, "iptables-nft-restore"]) expect(paper).toContain(part);

  node.startAgent(env());
  await node.inSync(20_000);
  expect(await lab.unreached(pods)).toEqual([]);
  const state = await stateOf(node);
  expect(await backendNow()).toEqual(["iptables-nft"]);
  const warnings = atLeast("warn", node.agentLog()).filter((line) => JSON.stringify(line).includes(remedy));
  expect(warnings).toHaveLength(1);
  expect(await readyz()).toMatch(/^ok\n(.*\n)*warning: .*modprobe -a nft_fib_inet/);
  await node.stopAgent();
  node.startAgent({ ...env(), FIREWALL_BACKEND: "nftables" });
  expect(await node.agentExit()).toBe(2);
  expect(logged()).toContain(remedy);
  // Nor is iptables of use.
  await standIn("iptables-nft", "echo iptables v1.6.1");
  await standIn("iptables-legacy", "echo iptables v1.6.1");
  node.startAgent(env());
  expect(await node.agentExit()).toBe(2);
  for (const part of [remedy, "iptables-nft 1.6.1 is too old"]) expect(logged()).toContain(part);
  expect(await stateOf(node)).toEqual(state);
});

test.each([
  ["nftables and iptables-nft", {}, "nft_fib_inet"],
  ["iptables-nft, which is set", { FIREWALL_BACKEND: "iptables" }, "iptables-nft"],
])("one of %s: iptables-legacy is taken, with a warning", async (_, more, said) => {
  await nftWithout("fib");
  await iptablesWithout("nft", "set");
  node.startAgent({ ...env(), ...more });
  await node.inSync(20_000);
  expect(await backendNow()).toEqual(["iptables-legacy"]);
  expect(await lab.unreached(pods)).toEqual([]);
  expect(await lab.reach(pods[0], lab.outside)).toMatchObject({ seen: node.addresses.ipv4! });
  for (const part of [said, "xt_set"])
    expect(await readyz()).toMatch(new RegExp(`^ok\n(.*\n)*warning: .*${part}`));
});

test.each(["auto", "iptables"])(
  "one of each backend, which is %s: each is named, and nothing changed",
  async (backend) => {
    const before = await stateOf(node);
    await nftWithout("fib");
    await iptablesWithout("nft", "connmark");
    await iptablesWithout("legacy", "MASQUERADE");
    node.startAgent({ ...env(), FIREWALL_BACKEND: backend });
    expect(await node.agentExit()).toBe(2);
    const parts = ["iptables-nft", "xt_connmark", "iptables-legacy", "xt_MASQUERADE"];
    for (const part of backend === "auto" ? ["nft_fib_inet", ...parts] : parts)
      expect(logged()).toContain(part);
    expect(await stateOf(node)).toEqual(before);
  },
);

test("iptables of Kubernetes' own variant is kept where it has all", async () => {
  await node.$`iptables-legacy -t mangle -N KUBE-IPTABLES-HINT`;
  node.startAgent({ ...env(), FIREWALL_BACKEND: "iptables" });
  await node.inSync(20_000);
  expect(await backendNow()).toEqual(["iptables-legacy"]);
  expect(await readyz()).toBe("ok\n");
  await node.stopAgent();
  await iptablesWithout("legacy", "rpfilter");
  node.startAgent({ ...env(), FIREWALL_BACKEND: "iptables" });
  await node.inSync(20_000);
  expect(await backendNow()).toEqual(["iptables-nft"]);
  expect(await readyz()).toContain("ipt_rpfilter");
});
