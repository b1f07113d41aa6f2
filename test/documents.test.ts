/**
 * Every block of the README and of docs/ is of some use: commands are run by a test, expressions and settings hold. A new
 * block fails here until it has a line below: the document, words of the block, and the test that runs it (a file and
 * words of it), or what else is to be done with it.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { compileExpression } from "../src/plan/podcidr/expression.ts";
import { repository } from "./lab/cache.ts";
import { type Block, commandBlocks } from "./lab/documents.ts";

/** Where it is run. */
interface Runner {
  file: string;
  words: string;
}

const run = (file: string, words: string): Runner => ({ file, words });
const wholeNodes = (word: string) => run("test/wholenode-baremetal.test.ts", `block("${word}"`);
/** Not commands: a drawing, or what a command says. */
const shown = "shown";
const expression = (text: string) => void compileExpression(text);
const yaml = (text: string) => void expect(parse(text)).toBeObject();
const unitFile = (text: string) => void expect(text).toMatch(/^\[Service\]\n[A-Z]\w+=\S+$/);

const table: [document: string, words: string, use: Runner | typeof shown | ((text: string) => void)][] = [
  ["README.md", "npm run demo\nnpm test", run("test/demo.test.ts", '"npm", "run", "--silent", "demo"')],
  [
    "README.md",
    "kubectl apply -f deploy/manifest.yaml",
    run("test/wholenode.test.ts", "apply -f deploy/manifest.yaml"),
  ],
  ["README.md", "helm install", run("test/manifests-server.test.ts", "install wigglenet")],
  ["README.md", "rollout status", run("test/wholenode-upgrade.test.ts", 'includes("rollout status")')],
  ["README.md", "wg show wigglenet", run("test/wholenode-upgrade.test.ts", 'includes("wg show")')],
  ["README.md", "Kubernetes API ──►", shown],
  ["README.md", "npm run setup", run("test/run.ts", '["bun", "run", "check"]')],
  ["docs/migration.md", "set image", run("test/wholenode-upgrade.test.ts", 'includes("set image")')],
  [
    "docs/migration.md",
    "apply -f deploy/manifest.yaml",
    run("test/wholenode-upgrade.test.ts", 'includes("apply -f deploy/manifest.yaml")'),
  ],
  ["docs/migration.md", "$tables-restore", run("test/upgrade.test.ts", 'includes("-restore")')],
  ["docs/migration.md", "nft delete table", run("test/upgrade.test.ts", 'includes("nft delete table")')],
  ["docs/migration.md", "wigglenet/agent-", run("test/upgrade.test.ts", 'includes("wigglenet/agent-")')],
  // A release makes the images' files by this, and builds from them by buildah: there is no buildx without a daemon.
  ["docs/image.md", "npm run image-files", run("deploy/release.ts", "npm run --silent image-files")],
  [
    "docs/image.md",
    "wigglenet install-cni",
    run("deploy/chart/templates/daemonset.yaml", "args: [install-cni, --target"),
  ],
  ["docs/image.md", "npm run release", run("test/release.test.ts", "npm run --silent release -- --dry-run")],
  ["docs/bare-metal.md", "kubectl apply -f deploy/", wholeNodes("apply -f deploy")],
  ["docs/bare-metal.md", "kubectl create token", wholeNodes("create token")],
  ["docs/bare-metal.md", "openssl req", wholeNodes("openssl req")],
  ["docs/bare-metal.md", "certificate approve", wholeNodes("certificate approve")],
  ["docs/bare-metal.md", "current-context", wholeNodes("current-context")],
  ["docs/bare-metal.md", "client-certificate:", wholeNodes("client-certificate:")],
  ["docs/bare-metal.md", "./wigglenet install", run("test/vm-systemd.test.ts", '"install"')],
  [
    "docs/bare-metal.md",
    "systemctl restart wigglenet",
    run("test/vm-systemd.test.ts", 'systemctl("restart", "wigglenet")'),
  ],
  ["docs/bare-metal.md", "wigglenet uninstall", run("test/vm-systemd.test.ts", '"uninstall"')],
  ["docs/bare-metal.md", "[Service]", unitFile],
  [
    "docs/configuration.md",
    "userspace.yaml",
    run("test/wholenode.test.ts", "--patch-file deploy/userspace.yaml"),
  ],
  [
    "docs/configuration.md",
    "iptables.yaml",
    run("test/wholenode.test.ts", "--patch-file deploy/iptables.yaml"),
  ],
  [
    "docs/configuration.md",
    "allowedPodCIDRs={",
    run("test/manifests-server.test.ts", 'includes("allowedPodCIDRs={")'),
  ],
  ["docs/configuration.md", "detectLocalMode", yaml],
  ["docs/pod-cidrs.md", "line 1, column", shown],
  ["docs/pod-cidrs.md", "", expression],
];

const documents = ["README.md", ...[...new Bun.Glob("docs/*.md").scanSync(repository)].sort()];
const blocks = documents.flatMap((document) =>
  commandBlocks(document).map((block): [string, Block, string] => [block.at, block, document]),
);

const used = new Set<number>();

test.each(blocks)("%s", (at, block, document) => {
  const index = table.findIndex(([of, words]) => of === document && block.text.includes(words));
  if (index < 0) throw new Error(`${at} is in no line of the table in this file:\n${block.text}`);
  used.add(index);
  const [, , use] = table[index]!;
  if (use === shown) return;
  if (typeof use === "function") use(block.text);
  else expect(readFileSync(`${repository}/${use.file}`, "utf8")).toContain(use.words);
});

test("every line of the table is of a block that there is", () => {
  expect(table.filter((_, index) => !used.has(index))).toEqual([]);
});
