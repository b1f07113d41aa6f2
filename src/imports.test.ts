/** Imports run one way: the folders of src by the table below, and no file of src or deploy imports itself in a circle. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

const root = join(import.meta.dirname, "..");

/** What the files of a folder may import besides their own folder. Those right in src may import all. */
const allowed: Record<string, readonly string[]> = {
  "src/plan": [],
  "src/cluster": ["src/plan", "src/shorten.ts"],
  "src/host": ["src/plan", "src/config.ts", "src/settings.ts", "src/findings.ts", "src/shorten.ts"],
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
    const folder = dirname(file);
    const may = allowed[folder];
    return may === undefined
      ? []
      : targets
          .filter((target) => ![folder, ...may].some((one) => target === one || dirname(target) === one))
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
  expect(imports.get("src/main.ts")).toContain("src/agent.ts");
});
