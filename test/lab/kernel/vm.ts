/**
 * A virtual machine with a stock Debian kernel, for kernel WireGuard on machines that have none (qemu, software emulation).
 * Its root is this machine's own, read-only under a tmpfs: programs, repository and caches are at the same paths. Only
 * /run is another there, and `vm.dir` is the machine's own, which both sides write. This machine is 10.0.2.2 from inside.
 */

import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { quote } from "zx";
import { until } from "../process.ts";
import { debianKernel, type Kernel } from "./kernel.ts";

/** This machine as the guest sees it. */
export const HOST_ADDRESS = "10.0.2.2";

export const VM_PACKAGES = ["qemu-system-x86", "busybox-static", "cpio", "kmod", "xz-utils"];

export interface VmOptions {
  /**
   * Default 1: beside other work on a machine of two cores, a guest with two spends its time waiting for the one that the
   * machine does not run (a veth, a WireGuard link and an nftables table took 2 s to make and delete with one, 11 s with two).
   */
  cpus?: number;
  memoryMiB?: number;
  /** Further words of the kernel's command line. */
  kernelArguments?: string[];
  log?: (line: string) => void;
}

export interface ExecOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** Seconds, then the command is killed and its exit code is 124 (as `timeout` has it). */
  timeout?: number;
  /** Gets stdout and stderr as they come. */
  onOutput?: (text: string) => void;
}

export interface ExecResult {
  code: number;
  stdout: string;
  stderr: string;
}

export class Vm implements AsyncDisposable {
  /** The directory that host and guest share, at the same path. */
  readonly dir: string;
  readonly #qemu: Bun.Subprocess;
  readonly #port: Socket;
  readonly #pending = new Map<string, PromiseWithResolvers<number>>();
  #next = 1;

  private constructor(dir: string, qemu: Bun.Subprocess, port: Socket) {
    this.dir = dir;
    this.#qemu = qemu;
    this.#port = port;
  }

  /** Boots, which takes about 6 s; the kernel is fetched first if the cache has none. */
  static async start(options: VmOptions = {}): Promise<Vm> {
    const kernel = await debianKernel(options.log);
    for (let attempt = 1; ; attempt += 1) {
      const begin = performance.now();
      const dir = await mkdtemp(join(tmpdir(), "wigglenet-vm-"));
      const command = qemuCommand(kernel, dir, options);
      const stderr = Bun.file(join(dir, "qemu"));
      const qemu = Bun.spawn(command, { stdin: "ignore", stdout: "ignore", stderr });
      try {
        const port = await until("qemu to listen", async () => {
          if (qemu.exitCode !== null) throw new Error("qemu did not start");
          return await open(join(dir, "port"));
        });
        const vm = new Vm(dir, qemu, port);
        const uptime = await vm.#ready();
        const elapsed = (performance.now() - begin) / 1000;
        // Seen once on a busy machine: a kernel that had mistaken the TSC's frequency, its time ran ten times too fast
        if (uptime > 1.5 * elapsed || uptime < 0.2 * elapsed)
          throw new Error(`it counted ${uptime} s where ${elapsed.toFixed(1)} s had passed`);
        return vm;
      } catch (error) {
        qemu.kill("SIGKILL");
        await qemu.exited;
        const failure = new Error(`virtual machine: ${(error as Error).message}\n${await tail(dir)}`);
        await rm(dir, { recursive: true });
        if (attempt === 3) throw failure;
        options.log?.(`${failure.message}\nvirtual machine: starting again`);
      }
    }
  }

  /** Waits until the guest takes commands; the seconds that it has counted since its start. */
  async #ready(): Promise<number> {
    const ready = Promise.withResolvers<number>();
    this.#pending.set("ready", ready);
    const timer = setTimeout(() => ready.reject(new Error("not up after 120 s")), 120_000);
    createInterface(this.#port).on("line", (line) => {
      const [id, value] = line.split(" ") as [string, string];
      this.#pending.get(id)?.resolve(Number(value));
      this.#pending.delete(id);
    });
    this.#port.on("error", () => {}); // its end is told by qemu's
    this.#qemu.exited.then(async () => {
      const failure = new Error(`virtual machine ended\n${await tail(this.dir)}`);
      for (const pending of this.#pending.values()) pending.reject(failure);
      this.#pending.clear();
    });
    return await ready.promise.finally(() => clearTimeout(timer));
  }

  /** Runs a bash script, or a program with its arguments. Several may run at once. */
  async exec(command: string | string[], options: ExecOptions = {}): Promise<ExecResult> {
    const { cwd = process.cwd(), timeout = 600, onOutput } = options;
    const { XDG_CACHE_HOME } = process.env;
    // Code that a program makes as it runs costs qemu more than it gives, so tests run without. Agents need it for bun:ffi.
    const env = { BUN_JSC_useJIT: "0", ...(XDG_CACHE_HOME && { XDG_CACHE_HOME }), ...options.env };
    const id = String(this.#next++);
    const dir = join(this.dir, id);
    await mkdir(dir);
    const script = typeof command === "string" ? command : command.map(quote).join(" ");
    const exports = Object.entries(env).map(([name, value]) => `export ${name}=${quote(value)}`);
    await writeFile(join(dir, "command"), [`cd ${quote(cwd)}`, ...exports, script, ""].join("\n"));
    await writeFile(join(dir, "script"), `exec timeout -k 5 ${timeout} bash ${join(dir, "command")}\n`);
    for (const name of ["stdout", "stderr"]) await writeFile(join(dir, name), "");

    const done = Promise.withResolvers<number>();
    this.#pending.set(id, done);
    this.#port.write(`${id}\n`);
    const follow = onOutput && new Follow([join(dir, "stdout"), join(dir, "stderr")], onOutput);
    try {
      const code = await done.promise;
      const [stdout, stderr] = await Promise.all(
        ["stdout", "stderr"].map((name) => readFile(join(dir, name), "utf8")),
      );
      return { code, stdout: stdout!, stderr: stderr! };
    } finally {
      await follow?.end();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#port.destroy();
    this.#qemu.kill("SIGKILL");
    await this.#qemu.exited;
    await rm(this.dir, { recursive: true });
  }
}

function qemuCommand(
  kernel: Kernel,
  dir: string,
  { cpus = 1, memoryMiB = 4096, kernelArguments = [] }: VmOptions,
): string[] {
  const append = [
    // What guards a kernel against its users costs an emulated one a twentieth; `lsm=`: without AppArmor alone it is SELinux
    "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 hardened_usercopy=off lsm= audit=0",
    // The emulated TSC is the machine's own; the kernel would rather trust the HPET, which costs an exit a reading
    "tsc=reliable clocksource=tsc",
    // Without random addresses qemu need not translate a program again at each start, which halves the cost of one
    "norandmaps",
    `guest.share=${dir} guest.modules=${kernel.modules}`,
    ...kernelArguments,
  ];
  return [
    // qemu must not outlive a test run that is killed
    ..."setpriv --pdeathsig KILL qemu-system-x86_64 -accel tcg,thread=multi".split(" "),
    // Else the kernel clears memory by an instruction that is emulated byte by byte, and has page tables of five levels
    ..."-cpu max,-erms,-fsrm,-la57".split(" "),
    ...`-smp ${cpus} -m ${memoryMiB} -nodefaults -no-user-config -display none -no-reboot`.split(" "),
    ...["-kernel", kernel.image, "-initrd", kernel.initrd, "-append", append.join(" ")],
    ...["-serial", `file:${join(dir, "console")}`],
    ...["-fsdev", "local,id=root,path=/,security_model=passthrough,readonly=on,multidevs=remap"],
    ...["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"],
    ...["-fsdev", `local,id=share,path=${dir},security_model=passthrough`],
    ...["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"],
    ...["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="],
    ...["-chardev", `socket,id=port,path=${join(dir, "port")},server=on,wait=off`],
    ...["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port"],
  ];
}

/** Hands on what is appended to files; they are the guest's, which sends no file events. */
class Follow {
  readonly #offsets: Map<string, number>;
  readonly #onOutput: (text: string) => void;
  readonly #timer: Timer;
  #reading: Promise<void> = Promise.resolve();

  constructor(files: string[], onOutput: (text: string) => void) {
    this.#offsets = new Map(files.map((file) => [file, 0]));
    this.#onOutput = onOutput;
    this.#timer = setInterval(() => this.#read(), 200);
  }

  #read(): Promise<void> {
    this.#reading = this.#reading.then(async () => {
      for (const [path, offset] of this.#offsets) {
        const bytes = await Bun.file(path).slice(offset).bytes();
        if (bytes.length === 0) continue;
        this.#offsets.set(path, offset + bytes.length);
        this.#onOutput(Buffer.from(bytes).toString());
      }
    });
    return this.#reading;
  }

  end(): Promise<void> {
    clearInterval(this.#timer);
    return this.#read();
  }
}

/** A connection to a Unix socket, or undefined while nobody listens there. */
async function open(path: string): Promise<Socket | undefined> {
  const socket = connect(path);
  const { promise, resolve } = Promise.withResolvers<Socket | undefined>();
  socket.once("connect", () => resolve(socket)).once("error", () => resolve(undefined));
  return await promise;
}

async function tail(dir: string): Promise<string> {
  const texts = await Promise.all(
    ["qemu", "console"].map((name) => readFile(join(dir, name), "utf8").catch(() => "")),
  );
  return texts.join("").trimEnd().split("\n").slice(-20).join("\n");
}
