/** Imports run one way: the folders of src by the table below, and no file of src or deploy imports itself in a circle. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

const root = join(import.meta.dirname, "..");

/** What the files of a folder of src may import besides their own folder. `src/main.ts` may import all. */
const allowed: Record<string, readonly string[]> = {
  net: [],
  report: [],
  plan: ["net"],
  config: ["net", "plan", "report"],
  cluster: ["net", "plan", "report"],
  host: ["net", "plan", "report", "config"],
  reconcile: ["net", "plan", "report", "config", "cluster", "host"],
  observe: ["net", "plan", "report", "config", "cluster", "host", "reconcile"],
  cli: ["net", "plan", "report", "config", "cluster", "host", "reconcile", "observe"],
};

/** By file, what it imports of src and deploy; paths from the root of the repository. Tests are left out. */
const imports = new Map<string, string[]>();
for (const file of new Bun.Glob("{src,deploy}/**/*.ts").scanSync(root)) {
  if (/\.test\.ts$|\/fixtures\//.test(file)) continue;
  const text = readFileSync(join(root, file), "utf8");
  const targets = [...text.matchAll(/\b(?:from|import)\s*\(?"(\.[^"]+\.ts)"/g)].map(([, path = ""]) =>
    relative(root, join(root, dirname(file), path)),
  );
  imports.set(
    file,
    targets.filter((path) => /^(src|deploy)\//.test(path)),
  );
}

test("folders import along the arrows alone", () => {
  const against = [...imports].flatMap(([file, targets]) => {
    const folder = /^src\/(\w+)\//.exec(file)?.[1];
    if (folder === undefined) return [];
    const may = [folder, ...(allowed[folder] ?? [])].map((name) => `src/${name}`);
    return targets
      .filter((target) => !may.some((name) => target === name || target.startsWith(`${name}/`)))
      .map((target) => `${file} → ${target}`);
  });
  expect(against).toEqual([]);
});

test("no circle", () => {
  const circles: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): void => {
    const from = path.indexOf(file);
    if (from >= 0) circles.push([...path.slice(from), file].join(" → "));
    if (from >= 0 || done.has(file)) return;
    for (const target of imports.get(file) ?? []) visit(target, [...path, file]);
    done.add(file);
  };
  for (const file of imports.keys()) visit(file, []);
  expect(circles).toEqual([]);
  // The table of files is not empty by mistake.
  expect(imports.get("src/main.ts")).toContain("src/cli/agent.ts");
});
