import { describe, expect, test } from "bun:test";
import { lackingInPod, type ObservedPod } from "./pod.ts";

const needs = {
  procSysNet: "/host/proc/sys/net",
  folders: ["/etc/wigglenet", "/etc/cni/net.d", "/run/wigglenet"],
};

/** As runc mounts a pod: the image's root, its own /proc with /proc/sys read-only, and what the manifest names. */
const mounted = (...points: string[]) =>
  ["/", "/proc", "/proc/sys", "/dev", "/etc/hosts", "/run/secrets/kubernetes.io/serviceaccount", ...points]
    .map((point, index) => `${500 + index} 400 0:${index} / ${point} rw,relatime - overlay overlay rw`)
    .join("\n");

/** deploy/manifest.yaml */
const ours: ObservedPod = {
  mountInfo: mounted("/etc/wigglenet", "/etc/cni/net.d", "/run/wigglenet", "/host/proc/sys/net"),
  sysctlsWritable: true,
  memoryLimit: 512 * 2 ** 20,
  netAdmin: true,
};

test("in our own DaemonSet nothing is lacking", () => {
  expect(lackingInPod(needs, ours)).toEqual([]);
  expect(lackingInPod(needs, { ...ours, memoryLimit: undefined })).toEqual([]);
  // A whole folder of the host may be mounted as well.
  expect(lackingInPod(needs, { ...ours, mountInfo: mounted("/etc", "/run") })).toEqual([]);
});

test("in that of the Go implementation everything is named at once, with the manifest that has it", () => {
  const theirs: ObservedPod = {
    mountInfo: mounted("/etc/wigglenet", "/etc/cni/net.d", "/run/xtables.lock", "/lib/modules"),
    sysctlsWritable: false,
    memoryLimit: 50 * 2 ** 20,
    netAdmin: true,
  };
  expect(lackingInPod({ ...needs, procSysNet: "/proc/sys/net" }, theirs)).toEqual([
    'PROC_SYS_NET_PATH="/proc/sys/net": cannot be written in this container: mount the host\'s /proc/sys/net, and set this to where it is',
    "/run/wigglenet is not the host's: mount the host's folder there",
    "the memory limit of 50 MiB is too low: set 512 MiB",
    "deploy/manifest.yaml has all of this, and replaces the DaemonSet of the Go implementation: kubectl apply -f deploy/manifest.yaml",
  ]);
});

describe("each alone", () => {
  test.each<[change: Partial<ObservedPod>, says: string]>([
    [{ sysctlsWritable: false }, "cannot be written"],
    [{ memoryLimit: 63 * 2 ** 20 }, "the memory limit of 63 MiB is too low"],
    [{ netAdmin: false }, "the capability NET_ADMIN is missing"],
    [{ mountInfo: mounted("/etc/cni/net.d", "/run/wigglenet") }, "/etc/wigglenet is not the host's"],
    [{ mountInfo: mounted("/etc/wigglenet", "/run/wigglenet") }, "/etc/cni/net.d is not the host's"],
    [
      { mountInfo: mounted("/etc/wigglenet", "/etc/cni/net.d", "/run/wigglenet.d") },
      "/run/wigglenet is not the host's",
    ],
  ])("%j", (change, says) => {
    const [first, last, ...more] = lackingInPod(needs, { ...ours, ...change });
    expect([first, more]).toEqual([expect.stringContaining(says), []]);
    expect(last).toContain("deploy/manifest.yaml");
  });
});
