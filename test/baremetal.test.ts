/** What the executable and the unit for bare metal say where nothing has to run. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "zx";
import { repository } from "./lab/cache.ts";
import { kubeconfig } from "./lab/cluster/pki.ts";

let programs: string;
beforeAll(() => {
  programs = mkdtempSync(join(tmpdir(), "wigglenet-programs-"));
});
afterAll(() => rmSync(programs, { recursive: true }));

/** The agent's exit code and stderr, with no programs but those in the directory. */
async function started(env: Record<string, string> = {}): Promise<[code: number, stderr: string]> {
  const config = join(programs, "kubeconfig");
  await Bun.write(config, kubeconfig("https://127.0.0.1:1", { pem: "" }, { tokenFile: "/nowhere" }));
  const child = Bun.spawn([`${repository}/dist/wigglenet`], {
    env: { PATH: programs, NODE_NAME: "n1", KUBECONFIG: config, ...env },
    stderr: "pipe",
  });
  return [await child.exited, await child.stderr.text()];
}

test("programs that are missing or too old stop the start, all in one message", async () => {
  symlinkSync("/bin/ip", join(programs, "ip"));
  writeFileSync(
    join(programs, "wg"),
    "#!/bin/sh\necho wireguard-tools v1.0.20200206 - https://example.org/\n",
    {
      mode: 0o755,
    },
  );
  const [code, stderr] = await started({ WIREGUARD: "userspace" });
  expect(stderr).toBe(
    [
      "wigglenet: programs that this node needs:",
      "  nft is not there: install nftables 0.9.8 or later",
      "  wg 1.0.20200206 is too old: install wireguard-tools 1.0.20210223 or later",
      "  wireguard-go is not there: install wireguard-go 0.0.20210212 or later",
      "",
    ].join("\n"),
  );
  expect(code).toBe(2);
});

test("those of iptables are asked for where it is the backend", async () => {
  symlinkSync("/usr/sbin/nft", join(programs, "nft"));
  symlinkSync("/usr/sbin/xtables-nft-multi", join(programs, "iptables-nft"));
  const [code, stderr] = await started({ FIREWALL_BACKEND: "iptables", FIREWALL_ONLY: "1" });
  expect(stderr).toContain("  ip6tables-nft is not there: install iptables 1.8.7 or later\n");
  expect(stderr).toContain("  ipset is not there: install ipset 7.10 or later\n");
  expect(stderr).not.toContain("  iptables-nft");
  expect(code).toBe(2);
});

test("the unit's exposure is 4.0 at most, as systemd-analyze has it", async () => {
  const unit = `${repository}/deploy/wigglenet.service`;
  const { stdout } = await $({ quiet: true })`systemd-analyze security --offline=true --threshold=40 ${unit}`;
  const exposure = /Overall exposure level for wigglenet.service: ([\d.]+)/.exec(stdout)?.[1];
  console.log(`exposure ${exposure}`);
  expect(Number(exposure)).toBeGreaterThan(0);
  expect(Number(exposure)).toBeLessThanOrEqual(4);
});
