/** `npm run demo`: a real cluster of three nodes with Wigglenet as its network, to look at. `--exit` ends it at once. */
import { repository, tool } from "./lab/cache.ts";
import { agentImage } from "./lab/image/image.ts";
import { installLab } from "./lab/install.ts";

const usage = "usage: npm run demo [-- --exit]";
const wrong = Bun.argv.slice(2).find((argument) => argument !== "--exit");
if (wrong) {
  console.error(`unexpected argument ${JSON.stringify(wrong)}\n${usage}`);
  process.exit(2);
}

const step = (line: string) => console.log(`demo: ${line}`);
step("installing what this machine lacks");
await installLab();
step("building the agent");
const build = Bun.spawn(["bun", "run", "--silent", "build"], {
  cwd: repository,
  stdout: "ignore",
  stderr: "inherit",
});
if ((await build.exited) !== 0) process.exit(1);
step("building the agent's image");
await agentImage(step);

// Ctrl-C reaches every process of the terminal's group at once, the cluster's own too. So that it can be taken down in
// order, it runs in a group apart, and this process passes the wish on. Whoever kills this process kills the cluster.
const cluster = Bun.spawn(
  [
    tool("enter"),
    "run",
    "self",
    process.execPath,
    `${import.meta.dirname}/democluster.ts`,
    ...Bun.argv.slice(2),
  ],
  { cwd: repository, detached: true, stdin: "ignore", stdout: "inherit", stderr: "inherit" },
);
let asked = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    if (asked) process.exit(1);
    asked = true;
    step("taking the cluster down (once more: leave at once)");
    cluster.kill("SIGTERM");
  });
}
process.exit(await cluster.exited);
