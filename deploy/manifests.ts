/**
 * `npm run manifests`: writes the settings into the chart's values, from them the schema by which Helm refuses misspelt
 * ones, and renders deploy/manifest*.yaml: the default, and one for each file in deploy/chart/variants. Those that the
 * Go implementation has too are there under its names as well.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { parse } from "yaml";
import { $ } from "zx";
import { type SettingName, settingNames, settings } from "../src/config/settings.ts";
import { helm, kubernetesVersion } from "../test/lab/cache.ts";
import { ensureHelm } from "../test/lab/install.ts";

const deploy = import.meta.dirname;
export const chart = `${deploy}/chart`;

/** Those that the template sets by itself. */
export const fixed: readonly SettingName[] = ["NODE_NAME", "PROC_SYS_NET_PATH"];

/** Those whose default in a pod is another: kubelet asks there. */
export const inPod: Partial<Record<SettingName, string>> = { HEALTH_BIND_ADDR: "127.0.0.1:24602" };

/** Of the chart, what is made from src/config/settings.ts: paths and texts. */
export function chartFiles(): Map<string, string> {
  const own = /^.*?\n(?=settings:\n)/s.exec(readFileSync(`${chart}/values.yaml`, "utf8"))![0];
  const values = own + valuesOfSettings();
  const schema = { $schema: "http://json-schema.org/draft-07/schema#", ...schemaOf(parse(values)) };
  return new Map([
    [`${chart}/values.yaml`, values],
    [`${chart}/values.schema.json`, `${JSON.stringify(schema, null, 2)}\n`],
  ]);
}

/** Variants, and the file names that the Go implementation has for them. */
const goNames: Record<string, string> = { ipv6_only: "ipv6_only", metrics: "manifest-metrics" };

/** The manifests that the chart renders: paths and texts. */
export async function manifests(): Promise<Map<string, string>> {
  const manifest = async (names: string[], purpose: string, flags: string[]) => {
    const head = `${purpose}# Made from deploy/chart by \`npm run manifests\`. Every setting: docs/configuration.md\n`;
    const text = head + commented(await render(flags));
    return names.map((name): [string, string] => [`${deploy}/${name}.yaml`, text]);
  };
  const variants = readdirSync(`${chart}/variants`).map((file) => {
    const path = `${chart}/variants/${file}`;
    const variant = basename(file, ".yaml");
    const [purpose] = /^(# .*\n)+/.exec(readFileSync(path, "utf8"))!;
    return manifest([`manifest_${variant}`, goNames[variant] ?? []].flat(), purpose, ["--values", path]);
  });
  const purpose = "# Both families through the tunnel, masqueraded to the outside: the default.\n";
  return new Map((await Promise.all([manifest(["manifest"], purpose, []), ...variants])).flat());
}

function valuesOfSettings(): string {
  const lines = settingNames
    .filter((name) => !fixed.includes(name))
    .map(
      (name) =>
        `  # ${settings[name].meaning}\n  ${name}: ${JSON.stringify(inPod[name] ?? settings[name].default)}\n`,
    );
  return `settings:\n${lines.join("")}`;
}

/** `helm template` of the chart. Throws with what Helm says. */
export async function render(flags: string[] = []): Promise<string> {
  const quiet = $({ quiet: true });
  // a Helm built by `go install` takes the server for one of version 1.20
  const server = ["--kube-version", kubernetesVersion, "--namespace", "kube-system"];
  return (await quiet`${helm} template wigglenet ${chart} ${server} ${flags}`).stdout;
}

/** Values lose their comments in Helm: each setting gets its meaning back. */
function commented(rendered: string): string {
  return rendered.replace(/^( +)- name: ([A-Z0-9_]+)$/gm, (line, indent: string, name: string) =>
    name in settings ? `${indent}# ${settings[name as SettingName].meaning}\n${line}` : line,
  );
}

/** In the policy one that CEL cannot read would have each agent refused. */
const prefix =
  "^(([0-9]{1,3}\\.){3}[0-9]{1,3}/([12]?[0-9]|3[0-2])|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*/([1-9]?[0-9]|1[01][0-9]|12[0-8]))$";

/** Names as in the default values, and no others but where the default is an empty or a foreign object. */
function schemaOf(value: unknown, name = "", within = ""): object {
  if (Array.isArray(value))
    return {
      type: "array",
      ...(name.startsWith("allowed") && { items: { type: "string", pattern: prefix } }),
    };
  if (typeof value === "boolean") return { type: "boolean" };
  // Of a number Helm keeps the value alone: 1.10 would be 1.1, and an image's tag of digits 2.0e+07. Settings are whole ones.
  if (typeof value !== "object" || value === null)
    return { type: ["string", ...(within === "settings" ? ["number", "boolean"] : []), "null"] };
  if (foreign.has(name)) return { type: ["object", "null"] };
  const properties = Object.entries(value).map(([key, each]) => [key, schemaOf(each, key, name)]);
  // Helm adds what parents share
  if (name === "") properties.push(["global", { type: "object" }]);
  return { type: "object", additionalProperties: false, properties: Object.fromEntries(properties) };
}

/** Kubernetes' own objects, passed on as they are. */
const foreign = new Set(["nodeSelector", "resources"]);

if (import.meta.main) {
  await ensureHelm();
  for (const [path, text] of chartFiles()) writeFileSync(path, text);
  for (const [path, text] of await manifests()) writeFileSync(path, text);
}
