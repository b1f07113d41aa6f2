/** When a whole node's kubelet tried to start a pod, by what containerd logs of it. */
import { readFileSync } from "node:fs";

/** Times in milliseconds since 1970. */
export interface SandboxAttempt {
  begin: number;
  /** NaN while it goes on. */
  end: number;
  /** Why it failed. */
  error?: string;
  /** When the first container of the sandbox ran; NaN before. */
  running: number;
}

/**
 * The attempts to make a pod's sandbox, the oldest first.
 * @param log path of containerd's log
 * @param since of earlier boots nothing
 */
export function sandboxAttempts(log: string, pod: string, since: Date): SandboxAttempt[] {
  const attempts: SandboxAttempt[] = [];
  let [sandbox, container] = ["", ""];
  for (const line of readFileSync(log, "utf8").split("\n")) {
    const time = Date.parse(/^time="([^"]+)"/.exec(line)?.[1] ?? "");
    if (Number.isNaN(time) || time < since.getTime()) continue;
    // Quotation marks within a message.
    const text = line.replaceAll('\\"', "'");
    const last = attempts.at(-1);
    if (text.includes(`RunPodSandbox for &PodSandboxMetadata{Name:${pod},`)) {
      const [, id] = /returns sandbox id '(\w+)'/.exec(text) ?? [];
      const [, error] = /failed, error" error="(.*)"$/.exec(text) ?? [];
      if (last && (id !== undefined || error !== undefined)) {
        last.end = time;
        if (id) sandbox = id;
        if (error) last.error = error;
      } else attempts.push({ begin: time, end: Number.NaN, running: Number.NaN });
    } else if (last && sandbox && text.includes(`CreateContainer within sandbox '${sandbox}'`))
      container = /returns container id '(\w+)'/.exec(text)?.[1] ?? container;
    else if (last && container && text.includes(`StartContainer for '${container}' returns successfully`))
      last.running = time;
  }
  return attempts;
}
