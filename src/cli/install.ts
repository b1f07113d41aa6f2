/**
 * `wigglenet install` and `uninstall`: the agent as a service of systemd on a node, beside kubelet. Both look at what is
 * there, and do only what is missing; both can print it instead.
 */
import { existsSync } from "node:fs";
import { readFile, readlink } from "node:fs/promises";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { parseEnv } from "node:util";
import unit from "../../deploy/wigglenet.service" with { type: "text" };
import { ApiClient, ApiError } from "../cluster/client.ts";
import { type Config, ConfigError, readConfig } from "../config/config.ts";
import { readSetting, settingNames, settings } from "../config/settings.ts";
import { $, command, perform, printStep, type Step } from "../host/command.ts";
import { readIfThere } from "../host/files.ts";
import { checkPrograms } from "../host/programs.ts";
import { removal } from "../host/removal.ts";

export const executablePath = "/usr/local/bin/wigglenet";
export const environmentPath = "/etc/wigglenet/wigglenet.env";
const service = "wigglenet.service";
const unitPath = `/etc/systemd/system/${service}`;

type Environment = Record<string, string | undefined>;

export interface Installed {
  /** Whether the executable is there, and the one that installs. */
  executable: "none" | "another" | "this";
  unit: string | undefined;
  environment: string | undefined;
  /** Of `systemctl show`. */
  enabled: boolean;
  active: boolean;
  /** systemd has not read the unit as it is now. */
  stale: boolean;
  /** What runs is an executable that was replaced since. */
  outdated: boolean;
}

/** @param wanted the executable that installs, and the content of the environment file if there is none yet */
export function planInstall(wanted: { self: string; environment: string }, installed: Installed): Step[] {
  const next = `${executablePath}.new`;
  const steps: Step[] = [
    // By rename, as the one that is there may run.
    ...(installed.executable === "this"
      ? []
      : [command`install -D -m 0755 ${wanted.self} ${next}`, command`mv -f ${next} ${executablePath}`]),
    ...(installed.environment === undefined
      ? [{ kind: "write" as const, path: environmentPath, content: wanted.environment, mode: 0o644 }]
      : []),
    ...(installed.unit === unit
      ? []
      : [{ kind: "write" as const, path: unitPath, content: unit, mode: 0o644 }]),
    ...(installed.unit === unit && !installed.stale ? [] : [command`systemctl daemon-reload`]),
    ...(installed.enabled ? [] : [command`systemctl enable ${service}`]),
  ];
  const running = installed.active && !installed.outdated;
  return [...steps, ...(steps.length === 0 && running ? [] : [command`systemctl restart ${service}`])];
}

/** The service goes; settings, key and data path stay. */
export function planUninstall(installed: Installed): Step[] {
  const { unit, enabled, active, executable } = installed;
  return [
    ...(enabled || active ? [command`systemctl disable --now ${service}`] : []),
    ...(unit === undefined ? [] : [command`rm ${unitPath}`, command`systemctl daemon-reload`]),
    ...(executable === "none" ? [] : [command`rm ${executablePath}`]),
  ];
}

/** Every setting with its meaning; those that are not given are commented out and show their default. */
export function environmentFile(given: Environment): string {
  const sections = settingNames.map((name) => {
    const { meaning, default: fallback } = settings[name];
    const line = given[name] ? `${name}=${quoted(name, given[name])}` : `#${name}=${fallback}`;
    return `# ${meaning}\n${line}\n`;
  });
  return [
    "# The settings of wigglenet.service. After a change: systemctl restart wigglenet\n# What is commented out has the value that it shows.\n",
    ...sections,
  ].join("\n");
}

/** As systemd reads it, and parseEnv too. */
function quoted(name: string, value: string): string {
  if (/^[\w@%+=:,./-]*$/.test(value)) return value;
  if (!/['\n]/.test(value)) return `'${value}'`;
  if (!/["\\$`\n]/.test(value)) return `"${value}"`;
  throw new ConfigError([`${name}=${JSON.stringify(value)}: cannot be written into an environment file`]);
}

export async function install(options: { kubeconfig?: string; dry: boolean }): Promise<void> {
  demandRoot();
  if (!Bun.main.startsWith("/$bunfs/")) throw new Error("only the compiled executable can install itself");
  const installed = await observe();
  const kubeconfig = options.kubeconfig ? resolve(options.kubeconfig) : undefined;
  const environment = installed.environment ?? newEnvironment(kubeconfig);
  const config = settingsOf(environment, kubeconfig);
  await checkPrograms(config);
  for (const note of await tryApi(config)) console.log(`note: ${note}`);
  const steps = planInstall({ self: process.execPath, environment }, installed);
  await carryOut(steps, options.dry);
  if (steps.length === 0) console.log("nothing to do: it is installed, and runs");
  else if (!options.dry)
    console.log(
      `its settings: ${environmentPath}; what it says: journalctl -u wigglenet; it starts at each boot`,
    );
}

export async function uninstall(options: { purge: boolean; dry: boolean }): Promise<void> {
  demandRoot();
  const installed = await observe();
  const steps = planUninstall(installed);
  await carryOut(steps, options.dry);
  const env: Environment = parseEnv(installed.environment ?? "");
  const of = (name: "WIGGLENET_IFACE_NAME" | "CNI_CONFIG_PATH" | "WIGGLENET_PRIVKEY_PATH") =>
    readSetting(env, name);
  const left = await removal({
    link: of("WIGGLENET_IFACE_NAME"),
    cniConfigPath: of("CNI_CONFIG_PATH"),
    files: [environmentPath, of("WIGGLENET_PRIVKEY_PATH")],
  });
  if (options.purge) await carryOut(left, options.dry);
  else if (left.length > 0)
    console.log(
      `left in place, so that pods keep their network and a new install its settings and key; to remove that too:\n${left.map(printStep).join("\n")}`,
    );
  if (steps.length + left.length === 0) console.log("nothing to do: nothing of it is here");
  else
    console.log(
      `in the cluster the Node keeps its annotations, until: kubectl annotate node ${env.NODE_NAME ?? "NAME"} wigglenet/public-key- wigglenet/node-ips- wigglenet/pod-cidrs- wigglenet/agent-`,
    );
}

function newEnvironment(kubeconfig: string | undefined): string {
  const given = Object.fromEntries(settingNames.map((name) => [name, process.env[name]]));
  // As kubelet does it unless it is told otherwise.
  const nodeName = given.NODE_NAME || hostname().toLowerCase();
  return environmentFile({ ...given, NODE_NAME: nodeName, KUBECONFIG: kubeconfig ?? given.KUBECONFIG });
}

/** What the service will have of its file. Throws a `ConfigError` that lists what is wrong. */
export function settingsOf(environment: string, kubeconfig: string | undefined): Config {
  const env: Environment = parseEnv(environment);
  const mistakes: string[] = [];
  if (kubeconfig && env.KUBECONFIG !== kubeconfig)
    mistakes.push(
      `--kubeconfig ${kubeconfig}: ${environmentPath} is there, is kept as it is, and has KUBECONFIG=${env.KUBECONFIG ?? ""}: change it there`,
    );
  if (!env.KUBECONFIG)
    mistakes.push('KUBECONFIG="": must be a kubeconfig file, see docs/bare-metal.md: give --kubeconfig FILE');
  const hidden = /^\/(home|root|tmp|var\/tmp|run\/user)\//.exec(env.KUBECONFIG ?? "");
  if (hidden)
    mistakes.push(
      `KUBECONFIG="${env.KUBECONFIG}": the service sees nothing of /${hidden[1]}: put it into /etc/wigglenet`,
    );
  try {
    const config = readConfig(env);
    if (mistakes.length === 0) return config;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    mistakes.push(...error.mistakes);
  }
  throw new ConfigError(mistakes);
}

/** Throws if the API server refuses what the agent asks for; what may yet come right is returned in words. */
async function tryApi({ kubeconfig, nodeName }: Config): Promise<string[]> {
  const client = new ApiClient(kubeconfig);
  try {
    await client.json({ path: "/api/v1/nodes?limit=1" });
    await client.json({ path: `/api/v1/nodes/${nodeName}` });
    return [];
  } catch (error) {
    if (error instanceof ApiError && error.status === 404)
      return [
        `there is no Node ${nodeName} yet; if kubelet gives it another name, set NODE_NAME in ${environmentPath}`,
      ];
    if (error instanceof ApiError && [401, 403].includes(error.status)) throw error;
    return [`the API server ${client.server} could not be asked: ${(error as Error).message}`];
  }
}

async function carryOut(steps: readonly Step[], dry: boolean): Promise<void> {
  for (const step of steps) {
    if (dry) console.log(printStep(step));
    else {
      await perform([step]);
      console.log(step.kind === "run" ? printStep(step) : `${step.kind} ${step.path}`);
    }
  }
}

async function observe(): Promise<Installed> {
  if (!existsSync("/run/systemd/system"))
    throw new Error(
      "systemd does not run here: have the init system that does run `wigglenet agent`, see docs/bare-metal.md",
    );
  const [executable, unit, environment, shown] = await Promise.all([
    observeExecutable(),
    readIfThere(unitPath),
    readIfThere(environmentPath),
    $`systemctl show --property=UnitFileState,ActiveState,NeedDaemonReload,MainPID ${service}`,
  ]);
  const property = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(shown)?.[1];
  const running = await readlink(`/proc/${property("MainPID")}/exe`).catch(() => "");
  return {
    executable,
    unit,
    environment,
    enabled: property("UnitFileState") === "enabled",
    active: property("ActiveState") === "active",
    stale: property("NeedDaemonReload") === "yes",
    outdated: running !== executablePath,
  };
}

async function observeExecutable(): Promise<Installed["executable"]> {
  if (process.execPath === executablePath) return "this";
  const [self, there] = await Promise.all([
    readFile(process.execPath),
    readFile(executablePath).catch(() => undefined),
  ]);
  if (there === undefined) return "none";
  return self.equals(there) ? "this" : "another";
}

function demandRoot(): void {
  if (process.getuid?.() !== 0) throw new Error("must be run as root: sudo wigglenet …");
}
