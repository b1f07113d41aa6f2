/** What the executable says to its arguments and its environment, on any machine and without rights. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { version } from "../package.json";
import { repository } from "./lab/cache.ts";

const binary = `${repository}/dist/wigglenet`;
const dir = mkdtempSync(`${tmpdir()}/wigglenet-modes-`);
afterAll(() => rmSync(dir, { recursive: true }));

/** It gets no further than to its configuration or its API server, on any machine and without rights. */
function run(args: string[], env: Record<string, string> = {}) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([binary, ...args], { env });
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

test("version", () => {
  expect(run(["version"])).toEqual({ exitCode: 0, stdout: `${version}\n`, stderr: "" });
});

test.each([
  [["agnet"], 'unknown command "agnet"'],
  [["agent", "now"], 'unexpected argument "now"'],
  [["--dryrun"], "--dryrun"],
  [["--kubeconfig"], "--kubeconfig"],
  [["agent", "--target", "/opt/cni/bin"], "agent takes no --target"],
  [["install-cni", "--kubeconfig", "x"], "install-cni takes no --kubeconfig"],
  [["-v=4", "install"], "install takes no -v=4"],
  [["version", "-stderrthreshold", "INFO"], "version takes no -stderrthreshold INFO"],
])("%p is refused", (args, said) => {
  const { exitCode, stdout, stderr } = run(args, { NODE_NAME: "n1" });
  expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: "" });
  expect(stderr).toContain(said);
  expect(stderr).toContain("usage: wigglenet");
});

test("all mistakes of a configuration in one message", () => {
  const { exitCode, stdout, stderr } = run(["agent"], {
    WIGGLENET_WG_PORT: "70000",
    MASQUERADE_IPV4: "yes",
    WIREGUARD: "fast",
    POD_CIDR_SOURCE_IPV4: "file",
    POD_CIDR_SOURCE_IPV6: "expression",
    POD_CIDR_EXPRESSION: `interfaces["eth0"][0].subnets(80, 0)`,
    WIGGLENET_IFACE_NAME: "a name that is too long",
    RESYNC_PERIOD: "1m",
    ENABLE_FLOWTABLE: "1",
    KUBECONFIG: "/nowhere",
  });
  expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: "" });
  expect(stderr).toMatchInlineSnapshot(`
    "wigglenet: wrong configuration:
      NODE_NAME="": must be the name of this node's Node object
      WIGGLENET_IFACE_NAME="a name that is too long": must be a link name of 1 to 15 letters, digits, - and _
      POD_CIDR_SOURCE_PATH="": must be an absolute path
      FLOWTABLE_DEVICES="": must list the links of the flows to offload, such as eth0,a name that is too long,veth*
      WIGGLENET_WG_PORT="70000": must be a whole number from 1 to 65535
      WIREGUARD="fast": must be one of auto, kernel, userspace
      POD_CIDR_EXPRESSION="interfaces[\\"eth0\\"][0].subnets(80, 0)": line 1, column 1 (interfaces["eth0"][0].subnets(80, 0)): type cidr has no function subnets; it has containsCIDR, containsIP, ip, masked, prefixLength, subnet
      MASQUERADE_IPV4="yes": must be a boolean: 1, t, true, 0, f or false
      RESYNC_PERIOD="1m": must be a whole number from 1 to 86400
    "
  `);
});

test.each<[name: string, content: string | undefined, said: RegExp]>([
  ["is not there", undefined, /kubeconfig \S+: .*ENOENT|no such file/],
  ["is garbage", "{ not: [yaml", /kubeconfig \S+: /],
  ["is empty", "", /kubeconfig \S+: /],
  [
    "has no current context",
    "apiVersion: v1\nkind: Config\n",
    /its current-context names no cluster that it has/,
  ],
])("a kubeconfig that %s", async (_, content, said) => {
  const path = `${dir}/kubeconfig`;
  if (content !== undefined) await Bun.write(path, content);
  const env = { NODE_NAME: "n1", FIREWALL_ONLY: "1" };
  const runs = [run(["agent", "--kubeconfig", path], env), run([], { ...env, KUBECONFIG: path })];
  for (const { exitCode, stderr } of runs) {
    expect(stderr).toMatch(said);
    expect(exitCode).toBe(1);
  }
});

test("no kubeconfig outside of a pod", () => {
  const { exitCode, stderr } = run([], { NODE_NAME: "n1", FIREWALL_ONLY: "1" });
  expect(stderr).toContain("set KUBECONFIG or --kubeconfig");
  expect(exitCode).toBe(1);
});
