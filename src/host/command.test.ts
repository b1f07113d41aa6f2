import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
  $,
  batch,
  CommandError,
  command,
  createExclusively,
  execute,
  perform,
  printStep,
  type Step,
} from "./command.ts";

const words = ["a b", "", "'", '"', "$(id)", "`id`", "*", "\\", "a\nb", "-n", "é", "${x}", ";", "~"];

describe("a template becomes argv", () => {
  const name = "a b; $(id)";
  const none: string[] = [];
  test.each<[title: string, argv: string[], expected: string[]]>([
    ["words at white space", command`ip -j  link   show`.argv, ["ip", "-j", "link", "show"]],
    [
      "over lines",
      command`ip link
      show`.argv,
      ["ip", "link", "show"],
    ],
    [
      "a value is one argument, whatever is in it",
      command`ip link show ${name}`.argv,
      ["ip", "link", "show", name],
    ],
    ["a number", command`wg set x listen-port ${24601}`.argv, ["wg", "set", "x", "listen-port", "24601"]],
    ["an array is as many", command`wg set ${["x", "y z"]} end`.argv, ["wg", "set", "x", "y z", "end"]],
    ["an empty array is none", command`wg ${none} show`.argv, ["wg", "show"]],
    ["an empty text is one", command`wg set ${""}`.argv, ["wg", "set", ""]],
  ])("%s", (_, argv, expected) => {
    expect(argv).toEqual(expected);
  });

  test.each<[lines: string[], stdin: (string | undefined)[]]>([
    [[], []],
    [["a"], ["a\n"]],
    [["a", "b"], ["a\nb\n"]],
  ])("a batch of %j", (lines, stdin) => {
    expect(batch(["ip", "-batch", "-"], lines).map((one) => one.stdin)).toEqual(stdin);
  });
});

describe("running", () => {
  const failureOf = (argv: string[], stdin?: string, limit?: number): Promise<CommandError> =>
    execute({ kind: "run", argv, ...(stdin === undefined ? {} : { stdin }) }, limit).then(
      () => Promise.reject(new Error("it did not fail")),
      (thrown) => thrown,
    );

  test("every argument arrives as it is, with no shell between", async () => {
    const output = await $`printf %s\\n ${words}`;
    expect(output).toBe(words.map((word) => `${word}\n`).join(""));
  });

  test("only stdout is the result", async () => {
    expect(await $`sh -c ${"echo out; echo err >&2; echo out"}`).toBe("out\nout\n");
  });

  test("stdin and stdout of megabytes", async () => {
    const stdin = `${"0123456789abcdef".repeat(64)}\n`.repeat(4_096);
    expect(await execute({ kind: "run", argv: ["cat"], stdin })).toBe(stdin);
  });

  test.each<[title: string, argv: string[], expected: string]>([
    ["that opens it as a file, as nft before 1.0 and wg do", ["cat", "/dev/stdin"], "x".repeat(1_000_000)],
    ["that ends without having read it", ["true"], ""],
  ])("stdin of a program %s", async (_, argv, expected) => {
    expect(await execute({ kind: "run", argv, stdin: "x".repeat(1_000_000) })).toBe(expected);
  });

  test("without stdin a program that reads does not wait", async () => {
    expect(await $`cat`).toBe("");
  });

  test.each<[title: string, argv: string[], message: string]>([
    [
      "an exit code",
      ["sh", "-c", "echo no route >&2; exit 2"],
      "sh -c 'echo no route >&2; exit 2': exit code 2: no route",
    ],
    [
      "a word on stdout alone",
      ["sh", "-c", "echo no; exit 1"],
      "sh -c 'echo no; exit 1': exit code 1: it said nothing",
    ],
    ["a program that is not there", ["wigglenet-no-such"], "cannot start wigglenet-no-such"],
    ["a signal, by its name", ["sh", "-c", "kill -TERM $$"], "sh -c 'kill -TERM $$': ended by SIGTERM"],
    [
      "a signal, and what was said before",
      ["sh", "-c", "echo low on memory >&2; kill -KILL $$"],
      "ended by SIGKILL: low on memory",
    ],
  ])("a failure: %s", async (_, argv, message) => {
    const error = await failureOf(argv);
    expect(error).toBeInstanceOf(CommandError);
    expect(error.message).toContain(message);
  });

  test("a program that takes too long is killed, even one that ignores signals, and the error says so", async () => {
    const begin = performance.now();
    const argv = ["sh", "-c", "trap '' TERM; while :; do :; done"];
    expect((await failureOf(argv, undefined, 200)).message).toEndWith(": timed out after 0.2 s");
    expect(performance.now() - begin).toBeLessThan(5_000);
  });

  // At 5,000 peers these were 81 kB to 1.7 MB, in one line of the log and in /readyz.
  const peers = Array.from({ length: 1_000 }, (_, n) => [
    "peer",
    Buffer.alloc(32, `${n}`).toString("base64"),
  ]);
  const elements = Array.from({ length: 5_000 }, (_, n) => `10.${n >> 8}.${n & 255}.0/24`).join(", ");
  const routes = Array.from(
    { length: 2_000 },
    (_, n) => `route add 10.${n >> 8}.${n & 255}.0/24 dev no-such`,
  );
  test.each<[title: string, argv: string[], stdin: string | undefined, message: RegExp]>([
    [
      "an argument list of 60 kB",
      ["wg", "set", "no-such-link", ...peers.flat()],
      undefined,
      /^wg set no-such-link peer .*… \(\d{5} characters\): exit code 1: .*(No such device|not supported)/,
    ],
    [
      "stdin of 80 kB",
      ["ip", "-batch", "-"],
      `${routes.join("\n")}\n`,
      /^ip -batch -: exit code \d+: Cannot find device "no-such"; Command failed -:1$/,
    ],
    [
      "a line of 80 kB on stderr",
      ["nft", "-c", "-f", "-"],
      `add element inet no-such no-such { ${elements} } nonsense\n`,
      /^nft -c -f -: exit code 1: \S+ Error: syntax error.*; add element inet no-such .*… \(\d{5} characters\)$/,
    ],
    [
      "5,000 lines on stderr",
      ["sh", "-c", "for i in $(seq 5000); do echo error $i >&2; done; exit 2"],
      undefined,
      /: exit code 2: error 1; error 2; error 3; error 4 \(and 4996 more lines\)$/,
    ],
    [
      "long words of several bytes",
      ["sh", "-c", "echo $0 $0 >&2; exit 2", "\u{1f4a9}é".repeat(20_000)],
      undefined,
      /^sh -c 'echo \$0 \$0 >&2; exit 2' .*: exit code 2: /u,
    ],
  ])("a failure with %s is told in one short line", async (_, argv, stdin, message) => {
    const error = await failureOf(argv, stdin);
    expect(error.message).toMatch(message);
    expect(Buffer.byteLength(error.message)).toBeLessThan(1_500);
    expect(error.message).not.toContain("\n");
  });
});

describe("printed", () => {
  test.each<[step: Step, expected: string]>([
    [command`ip link set dev wigglenet mtu 1420 up`, "ip link set dev wigglenet mtu 1420 up"],
    [
      command`wg set x peer ${"a+/="} endpoint ${"[fd00::1]:24601"}`,
      "wg set x peer a+/= endpoint '[fd00::1]:24601'",
    ],
    [command`echo ${"it's"} ${""}`, `echo 'it'\\''s' ''`],
    [
      { kind: "run", argv: ["nft", "-f", "-"], stdin: "add table inet x\n" },
      "nft -f - <<'END'\nadd table inet x\nEND",
    ],
    [
      { kind: "write", path: "/run/wigglenet/x", content: "{}\n", mode: 0o644 },
      "install -D -m 0644 /dev/stdin /run/wigglenet/x <<'END'\n{}\nEND",
    ],
    [
      { kind: "copy", path: "/opt/cni/bin/ptp", from: "/usr/lib/cni/ptp", mode: 0o755 },
      "install -m 0755 /usr/lib/cni/ptp /opt/cni/bin/ptp",
    ],
    [
      { kind: "write", path: "/run/empty", content: "", mode: 0o644 },
      "install -D -m 0644 /dev/null /run/empty",
    ],
    [{ kind: "remove", path: "/etc/cni/x y" }, "rm '/etc/cni/x y'"],
    [
      { kind: "sysctl", path: "/proc/sys/net/ipv4/conf/x/rp_filter", value: "2" },
      "echo 2 > /proc/sys/net/ipv4/conf/x/rp_filter",
    ],
  ])("%j", (step, expected) => {
    expect(printStep(step)).toBe(expected);
  });

  test("pasted into a shell it is the same argv", () => {
    const word = fc.oneof(
      fc.constantFrom(...words),
      fc.string({ maxLength: 12 }).filter((text) => !text.includes("\0")),
    );
    fc.assert(
      fc.property(fc.array(word, { minLength: 1, maxLength: 6 }), (argv) => {
        const script = printStep({ kind: "run", argv: ["printf", "%s\\0", ...argv] });
        const { stdout } = Bun.spawnSync(["sh", "-c", script]);
        return stdout.toString() === argv.map((text) => `${text}\0`).join("");
      }),
      { numRuns: 30 },
    );
  });
});

describe("files", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "wigglenet-run-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const at = (name: string) => join(folder, name);
  const mode = (name: string) => (statSync(at(name)).mode & 0o777).toString(8);

  test("a file is written whole, with its mode whatever the umask, in a folder that was not there", async () => {
    const umask = process.umask(0o077);
    await perform([{ kind: "write", path: at("a/b/file"), content: "x\n", mode: 0o644 }]);
    process.umask(umask);
    expect([readFileSync(at("a/b/file"), "utf8"), mode("a/b/file"), readdirSync(at("a/b"))]).toEqual([
      "x\n",
      "644",
      ["file"],
    ]);
  });

  test("one that is there is replaced by rename: who has it open reads the old one", async () => {
    writeFileSync(at("file"), "old");
    const { ino } = statSync(at("file"));
    await perform([{ kind: "write", path: at("file"), content: "new", mode: 0o600 }]);
    expect([readFileSync(at("file"), "utf8"), mode("file"), statSync(at("file")).ino === ino]).toEqual([
      "new",
      "600",
      false,
    ]);
  });

  test.each<[title: string, target: string]>([
    ["that leads to a file", "there"],
    ["that leads nowhere", "gone"],
  ])("a symbolic link %s is replaced itself", async (_, target) => {
    writeFileSync(at("there"), "old");
    symlinkSync(at(target), at("link"));
    await perform([{ kind: "write", path: at("link"), content: "new", mode: 0o644 }]);
    expect([readFileSync(at("link"), "utf8"), lstatSync(at("link")).isSymbolicLink()]).toEqual([
      "new",
      false,
    ]);
    expect(readFileSync(at("there"), "utf8")).toBe("old");
  });

  // The agent may be killed at any instruction, and starts again where a half is left.
  test("what an earlier life left half written", async () => {
    writeFileSync(at("file.wigglenet-tmp"), "half");
    chmodSync(at("file.wigglenet-tmp"), 0o400);
    await perform([{ kind: "write", path: at("file"), content: "x", mode: 0o644 }]);
    expect([readFileSync(at("file"), "utf8"), mode("file"), readdirSync(folder)]).toEqual([
      "x",
      "644",
      ["file"],
    ]);
  });

  test("a copy replaces by rename, has its own mode, and half of one is not left", async () => {
    for (const [name, content] of Object.entries({ from: "new", file: "old", "file.wigglenet-tmp": "half" }))
      writeFileSync(at(name), content, { mode: 0o600 });
    const { ino } = statSync(at("file"));
    await perform([{ kind: "copy", path: at("file"), from: at("from"), mode: 0o755 }]);
    expect([readFileSync(at("file"), "utf8"), mode("file"), statSync(at("file")).ino === ino]).toEqual([
      "new",
      "755",
      false,
    ]);
    const into: Step = { kind: "copy", path: at("folder"), from: at("from"), mode: 0o755 };
    mkdirSync(at("folder"));
    await expect(perform([into])).rejects.toThrow();
    expect(readdirSync(folder).sort()).toEqual(["file", "folder", "from"]);
  });

  test("a copy makes no folder: one that is not there is a mistake", async () => {
    writeFileSync(at("from"), "new");
    const into: Step = { kind: "copy", path: at("none/file"), from: at("from"), mode: 0o755 };
    await expect(perform([into])).rejects.toThrow("ENOENT");
    expect(readdirSync(folder)).toEqual(["from"]);
  });

  // Container runtimes read every *.conf, *.conflist and *.json in the folder.
  test("a draft does not look like a CNI file", async () => {
    await perform([{ kind: "write", path: at("10-x.conflist"), content: "", mode: 0o644 }]);
    await expect(
      perform([{ kind: "write", path: at("10-x.conflist/y"), content: "", mode: 0o644 }]),
    ).rejects.toThrow();
    for (const name of readdirSync(folder)) expect(name).toBe("10-x.conflist");
  });

  test("a sysctl is written in place", async () => {
    writeFileSync(at("rp_filter"), "0\n");
    const { ino } = statSync(at("rp_filter"));
    await perform([{ kind: "sysctl", path: at("rp_filter"), value: "2" }]);
    expect([readFileSync(at("rp_filter"), "utf8"), statSync(at("rp_filter")).ino === ino]).toEqual([
      "2",
      true,
    ]);
  });

  test("steps end with the first that fails", async () => {
    const steps: Step[] = [command`false`, { kind: "write", path: at("file"), content: "", mode: 0o644 }];
    await expect(perform(steps)).rejects.toThrow("false: exit code 1");
    expect(readdirSync(folder)).toEqual([]);
  });

  test("created exclusively: what is there stays, and no draft is left", async () => {
    await createExclusively(at("key"), "one", 0o600);
    await expect(createExclusively(at("key"), "two", 0o600)).rejects.toThrow("EEXIST");
    expect([readFileSync(at("key"), "utf8"), mode("key"), readdirSync(folder)]).toEqual([
      "one",
      "600",
      ["key"],
    ]);
  });
});
