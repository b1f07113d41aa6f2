/** The agents of whole nodes: the DaemonSet of deploy/manifest.yaml and its pods. */
import { expect } from "bun:test";
import { until } from "../process.ts";
import type { ApiObject } from "./api.ts";
import { type Cluster, isReady, type PodObject } from "./cluster.ts";

const daemonSet = "/apis/apps/v1/namespaces/kube-system/daemonsets/wigglenet";
const selector = encodeURIComponent("app.kubernetes.io/name=wigglenet");

export interface LogLine {
  time: string;
  msg: string;
}

export class AgentDaemonSet {
  readonly #cluster: Cluster;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  /** The agents of a node, whether they are well or not, but for those that are being deleted. */
  async pods(node: string): Promise<PodObject[]> {
    const path = `/api/v1/namespaces/kube-system/pods?labelSelector=${selector}&fieldSelector=spec.nodeName%3D${node}`;
    const pods = await this.#cluster.api.list<PodObject>(path);
    return pods.filter(({ metadata }) => !metadata.deletionTimestamp);
  }

  /** A node's agent, once it is ready. */
  pod(node: string): Promise<PodObject> {
    return until(`an agent on ${node}`, async () => (await this.pods(node)).find((pod) => isReady(pod)));
  }

  /** What a node's agent has said since it started. */
  async log(node: string): Promise<LogLine[]> {
    const { metadata } = await this.pod(node);
    const { stdout } = await this.#cluster.kubectl`-n kube-system logs ${metadata.name}`;
    return stdout.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as LogLine] : []));
  }

  /** Waits until a node's agent says that it is in sync; what it has said until then. */
  inSync(node: string): Promise<LogLine[]> {
    return until(`the agent of ${node} to be in sync`, async () => {
      const lines = await this.log(node);
      return lines.some((line) => line.msg === "in sync") && lines;
    });
  }

  patch(spec: object): Promise<ApiObject> {
    return this.#cluster.api.request("PATCH", daemonSet, { spec }, "application/strategic-merge-patch+json");
  }

  /** Changes what the agent's container is given. */
  patchContainer(change: object): Promise<ApiObject> {
    return this.patch({ template: { spec: { containers: [{ name: "wigglenet", ...change }] } } });
  }

  /** Deletes a node's agent, whether it is well or not; its uid. */
  async restart(node: string): Promise<string> {
    const { metadata } = await until(`an agent on ${node}`, async () => (await this.pods(node))[0]);
    await this.#cluster.kubectl`-n kube-system delete pod ${metadata.name}`;
    return metadata.uid;
  }

  /** What an agent whose container is changed says when it fails. */
  async failure(node: string, change: object): Promise<string> {
    await this.patchContainer(change);
    const before = await this.restart(node);
    const failed = await until("the agent to fail", async () => {
      const [pod] = (await this.pods(node)).filter(({ metadata }) => metadata.uid !== before);
      if (!pod) return undefined;
      const log = await this.#cluster.kubectl({
        nothrow: true,
      })`-n kube-system logs ${pod.metadata.name}`;
      expect(log.stdout).not.toContain('"in sync"');
      expect(isReady(pod)).toBe(false);
      const lines = log.stdout.split("\n").filter((line) => /"failed|^wigglenet:|^ {2}/.test(line));
      return lines.length > 0 && lines.join("\n");
    });
    console.log(`${JSON.stringify(change)}: ${failed}`);
    return failed;
  }
}
