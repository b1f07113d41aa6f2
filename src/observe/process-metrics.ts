/** The agent's own process by the names that all of Prometheus' clients have; its children are not counted. */
import { readdirSync, readFileSync } from "node:fs";
import { Counter, Gauge } from "prom-client";

/** Of Linux, for all processes. */
const ticksPerSecond = 100;

/** The fields of /proc/self/stat after the name, which may contain anything: the first is the state, the third of all. */
function stat(): number[] {
  const text = readFileSync("/proc/self/stat", "utf8");
  return text
    .slice(text.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
}

function gauge(name: string, help: string, read: () => number): void {
  new Gauge({
    name,
    help,
    collect() {
      this.set(read());
    },
  });
}

/** Registers them; each is read when Prometheus asks. */
export function registerProcessMetrics(): void {
  const started = Date.now() / 1000 - process.uptime();
  gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", () => started);
  gauge("process_resident_memory_bytes", "Resident memory, in bytes.", () => process.memoryUsage.rss());
  gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.", () => stat()[20]!);
  gauge("process_open_fds", "Open file descriptors.", () => readdirSync("/proc/self/fd").length);
  gauge("process_max_fds", "How many file descriptors the process may open.", () =>
    Number(/^Max open files +(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1] ?? 0),
  );
  new Counter({
    name: "process_cpu_seconds_total",
    help: "User and system time, in seconds.",
    collect() {
      const fields = stat();
      this.reset();
      this.inc((fields[11]! + fields[12]!) / ticksPerSecond);
    },
  });
}
