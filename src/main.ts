/** The command line: see `usage`. */
import { parseArgs } from "node:util";
import { version } from "../package.json";
import { runAgent } from "./cli/agent.ts";
import { dryRun } from "./cli/dry-run.ts";
import { install, uninstall } from "./cli/install.ts";
import { withoutKlogFlags } from "./cli/klog.ts";
import { loggerFor } from "./cli/setup.ts";
import { ConfigError } from "./config/config.ts";
import { installPlugins } from "./host/plugins.ts";
import { ProgramError } from "./host/programs.ts";

const usage = `usage: wigglenet [agent] [--kubeconfig FILE] [--dry-run]
       wigglenet install [--kubeconfig FILE] [--dry-run]
       wigglenet uninstall [--purge] [--dry-run]
       wigglenet install-cni [--target DIR] [--source DIR] [--dry-run]
       wigglenet version
The agent's configuration is its environment: see docs/configuration.md.`;

type Option = "dry-run" | "kubeconfig" | "purge" | "source" | "target";

/** Each command with the options that it takes. */
const commands: Record<string, Option[]> = {
  agent: ["kubeconfig", "dry-run"],
  install: ["kubeconfig", "dry-run"],
  uninstall: ["purge", "dry-run"],
  "install-cni": ["target", "source", "dry-run"],
  version: [],
};

async function main(): Promise<void> {
  const klog = withoutKlogFlags(process.argv.slice(2));
  const { values, positionals } = parseCommandLine(klog.args);
  const [name = "agent", ...rest] = positionals;
  if (values.help) return console.log(usage);
  const taken = commands[name];
  if (taken === undefined) throw new UsageError(`unknown command ${JSON.stringify(name)}`);
  if (rest.length > 0) throw new UsageError(`unexpected argument ${JSON.stringify(rest[0])}`);
  for (const option of Object.keys(values))
    if (!taken.includes(option as Option)) throw new UsageError(`${name} takes no --${option}`);
  if (name !== "agent" && klog.flags.length > 0) throw new UsageError(`${name} takes no ${klog.flags[0]}`);
  const { kubeconfig, "dry-run": dry = false, purge = false } = values;
  if (name === "version") return console.log(version);
  if (name === "install") return await install({ ...(kubeconfig && { kubeconfig }), dry });
  if (name === "uninstall") return await uninstall({ purge, dry });
  if (name === "install-cni") {
    const { source = "/usr/lib/cni", target = "/opt/cni/bin" } = values;
    return await installPlugins({ source, target, dry }, loggerFor("info", dry));
  }
  const options = { klog, ...(kubeconfig && { kubeconfig }) };
  await (dry ? dryRun(options) : runAgent(options));
}

class UsageError extends Error {}

function parseCommandLine(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        "dry-run": { type: "boolean" },
        kubeconfig: { type: "string" },
        purge: { type: "boolean" },
        source: { type: "string" },
        target: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

try {
  await main();
} catch (error) {
  const expected = [UsageError, ConfigError, ProgramError].some((kind) => error instanceof kind);
  console.error(`wigglenet: ${(error as Error).message}${error instanceof UsageError ? `\n${usage}` : ""}`);
  process.exit(expected ? 2 : 1);
}
