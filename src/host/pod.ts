/** Whether the agent's pod has of its node what the agent needs: a DaemonSet may be another than that of this version. */
import { access, constants, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { readSetting, type SettingName } from "../config/settings.ts";
import { gatePath } from "../plan/cni.ts";
import { readIfThere } from "./files.ts";

export interface Needs {
  /** PROC_SYS_NET_PATH. */
  procSysNet: string;
  /** Folders that have to be the host's, as they outlive the container or are read by others. */
  folders: readonly string[];
}

export interface ObservedPod {
  /** /proc/self/mountinfo */
  mountInfo: string;
  sysctlsWritable: boolean;
  /** Bytes; undefined: none. */
  memoryLimit: number | undefined;
  /** Whether it has this capability. */
  netAdmin: boolean;
}

/** In bytes. The agent alone is resident with 65 MiB, see the chart's values. */
const leastMemory = 64 * 2 ** 20;

type Environment = Record<string, string | undefined>;

/** What is lacking, one line each, with the remedy; nothing where this process is in no pod. */
export async function checkPod(env: Environment, firewallOnly: boolean): Promise<string[]> {
  if (!env.KUBERNETES_SERVICE_HOST) return [];
  const folder = (name: SettingName) => dirname(readSetting(env, name));
  const folders = [folder("WIGGLENET_PRIVKEY_PATH"), folder("CNI_CONFIG_PATH"), dirname(gatePath)];
  const procSysNet = readSetting(env, "PROC_SYS_NET_PATH");
  const observed = await observePod(procSysNet);
  // Of the node's folders and sysctls that writes none.
  const needs = firewallOnly ? { procSysNet, folders: [] } : { procSysNet, folders };
  return lackingInPod(needs, firewallOnly ? { ...observed, sysctlsWritable: true } : observed);
}

export function lackingInPod({ procSysNet, folders }: Needs, observed: ObservedPod): string[] {
  const points = observed.mountInfo.split("\n").map((line) => line.split(" ")[4] ?? "");
  const isMounted = (path: string): boolean =>
    path !== "/" && (points.includes(path) || isMounted(dirname(path)));
  const lacking = [
    ...(observed.sysctlsWritable
      ? []
      : [
          `PROC_SYS_NET_PATH=${JSON.stringify(procSysNet)}: cannot be written in this container: mount the host's /proc/sys/net, and set this to where it is`,
        ]),
    ...folders
      .filter((path) => !isMounted(path))
      .map((path) => `${path} is not the host's: mount the host's folder there`),
    ...((observed.memoryLimit ?? leastMemory) < leastMemory
      ? [`the memory limit of ${Math.floor(observed.memoryLimit! / 2 ** 20)} MiB is too low: set 512 MiB`]
      : []),
    ...(observed.netAdmin ? [] : ["the capability NET_ADMIN is missing: add it"]),
  ];
  return lacking.length === 0
    ? []
    : [
        ...lacking,
        "deploy/manifest.yaml has all of this, and replaces the DaemonSet of the Go implementation: kubectl apply -f deploy/manifest.yaml",
      ];
}

async function observePod(procSysNet: string): Promise<ObservedPod> {
  const limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
  const [mountInfo, status, ...said] = await Promise.all([
    readFile("/proc/self/mountinfo", "utf8"),
    readFile("/proc/self/status", "utf8"),
    ...limits.map(readIfThere),
  ]);
  const limit = Number(said.find((text) => text !== undefined));
  const sysctlsWritable = await access(join(procSysNet, "ipv4/ip_forward"), constants.W_OK).then(
    () => true,
    () => false,
  );
  return {
    mountInfo,
    sysctlsWritable,
    // "max", or in version 1 a number beyond all memory.
    memoryLimit: Number.isSafeInteger(limit) ? limit : undefined,
    netAdmin: (BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`) & (1n << 12n)) !== 0n,
  };
}
