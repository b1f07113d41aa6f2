/** etcd, kube-apiserver, kube-controller-manager and, for whole nodes, kube-scheduler: real ones, in the underlay's router namespace. */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { $ as zx } from "zx";
import { kubernetes, tool } from "../cache.ts";
import { kernelHasIpv6 } from "../kernel/namespace.ts";
import { type Families, pick, routerAddresses, Underlay } from "../kernel/underlay.ts";
import { type Service, until } from "../process.ts";
import { Api } from "./api.ts";
import { kubeconfig, Pki } from "./pki.ts";

export const podRanges = { ipv4: "10.244.0.0/16", ipv6: "fd00:10:244::/56" } as const;
export const serviceRanges = { ipv4: "10.96.0.0/16", ipv6: "fd00:10:96::/112" } as const;
/** The service address of the API server. */
export const apiServiceAddresses = { ipv4: "10.96.0.1", ipv6: "fd00:10:96::1" } as const;

/** How a control plane on this machine is reached from a virtual machine on it, or from here with another `host`. */
export interface ControlPlaneAccess {
  host: string;
  port: number;
  families: Families;
  ca: string;
  cert: string;
  key: string;
}

export interface ControlPlaneOptions {
  /** Of pods and services. Default "dual". */
  families?: Families;
  /** All controllers and the scheduler, for real kubelets. Otherwise only what light nodes need. */
  wholeNodes?: boolean;
  /** Default: one of its own. */
  underlay?: Underlay;
}

const join = (ranges: { ipv4: string; ipv6: string }, families: Families) =>
  Object.values(pick(families, ranges)).join(",");

export class ControlPlane implements AsyncDisposable {
  readonly families: Families;
  readonly underlay: Underlay;
  /** As admin, from this process's own network namespace. */
  readonly api: Api;
  /** Its certificate authority, PEM. */
  readonly ca: string;
  /** An admin's kubeconfig, a file that works from this process's own network namespace. */
  readonly kubeconfig: string;
  readonly #access: ControlPlaneAccess;
  #parts = new AsyncDisposableStack();
  readonly #pki: Pki | undefined;
  readonly #startServer: () => Service;
  #store: { dir: string; service: Service; start: () => Service } | undefined;
  #server: Service | undefined;

  private constructor(underlay: Underlay, access: ControlPlaneAccess, startServer: () => Service, pki?: Pki) {
    const { families, ca, cert, key } = access;
    this.families = families;
    this.underlay = underlay;
    this.ca = ca;
    this.#access = access;
    this.#pki = pki;
    this.#startServer = startServer;
    this.#server = startServer();
    const dir = `${underlay.dir}/admin`;
    mkdirSync(dir, { recursive: true });
    const files = { cert: `${dir}/admin.crt`, key: `${dir}/admin.key` };
    const host = pki ? "127.0.0.1" : access.host;
    this.api = new Api(`https://${host}:${access.port}`, { ca, cert, key });
    this.kubeconfig = `${dir}/kubeconfig`;
    writeFileSync(files.cert, cert);
    writeFileSync(files.key, key);
    writeFileSync(this.kubeconfig, kubeconfig(this.api.server, { pem: ca }, files));
  }

  static async start(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
    await using stack = new AsyncDisposableStack();
    const { families = "dual", wholeNodes = false } = options;
    const underlay = options.underlay ?? stack.use(await Underlay.start());
    const { dir, router } = underlay;
    mkdirSync(`${dir}/pki`);
    const pki = await Pki.create(`${dir}/pki`);
    const [, admin] = await Promise.all([
      pki.issue("apiserver", "/CN=kube-apiserver", serverNames),
      pki.issue("admin", "/O=system:masters/CN=admin"),
      pki.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
      pki.issue("controller-manager", "/CN=system:kube-controller-manager"),
      pki.issue("scheduler", "/CN=system:kube-scheduler"),
    ]);
    const start = (program: string, flags: string[]) =>
      router.start(program, [kubernetes(program), ...flags], `${dir}/log/${program}.log`);
    const config = (name: string) => {
      const file = `${dir}/pki/${name}.conf`;
      const user = { cert: `${dir}/pki/${name}.crt`, key: `${dir}/pki/${name}.key` };
      writeFileSync(file, kubeconfig("https://127.0.0.1:6443", { file: `${dir}/pki/ca.crt` }, user));
      return [
        `--kubeconfig=${file}`,
        `--authentication-kubeconfig=${file}`,
        `--authorization-kubeconfig=${file}`,
      ];
    };

    const startEtcd = () => start("etcd", etcdFlags(dir));
    const etcd = startEtcd();
    const forward = Bun.spawn(
      [tool("enter"), "forward", "127.0.0.1", "0", String(router.pid), "127.0.0.1", "6443"],
      {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "inherit",
      },
    );
    stack.defer(async () => {
      forward.kill("SIGKILL");
      await forward.exited;
    });
    const access = {
      host: guestsHost,
      port: Number(await firstLine(forward.stdout)),
      families,
      ca: pki.ca,
      cert: readFileSync(admin.cert, "utf8"),
      key: readFileSync(admin.key, "utf8"),
    };
    const startServer = () => start("kube-apiserver", serverFlags(`${dir}/pki`, families));
    const controlPlane = new ControlPlane(underlay, access, startServer, pki);
    controlPlane.#store = { dir: `${dir}/etcd`, service: etcd, start: startEtcd };
    stack.defer(async () => {
      await controlPlane.stopServer();
      await controlPlane.#store?.service.stop("SIGKILL");
    });
    stack.use(
      start("kube-controller-manager", [
        ...config("controller-manager"),
        ...controllerFlags(`${dir}/pki`, families, wholeNodes),
      ]),
    );
    if (wholeNodes) stack.use(start("kube-scheduler", [...config("scheduler"), ...clientFlags]));
    await controlPlane.ready();
    controlPlane.#parts = stack.move();
    return controlPlane;
  }

  /** One that runs outside of this (virtual) machine. Its nodes reach it at the usual addresses, through a forward. */
  static async attach(access: ControlPlaneAccess, underlay: Underlay): Promise<ControlPlane> {
    await using stack = new AsyncDisposableStack();
    const forward = () =>
      underlay.router.start(
        "forward",
        [
          tool("enter"),
          "forward",
          kernelHasIpv6 ? "::" : "0.0.0.0",
          "6443",
          String(process.pid),
          access.host,
          String(access.port),
        ],
        `${underlay.dir}/log/forward.log`,
      );
    const controlPlane = new ControlPlane(underlay, access, forward);
    stack.defer(() => controlPlane.stopServer());
    await controlPlane.ready();
    controlPlane.#parts = stack.move();
    return controlPlane;
  }

  /** What `attach` needs, as plain data. */
  get access(): ControlPlaneAccess {
    return this.#access;
  }

  /** Where nodes reach it. */
  server(family: "ipv4" | "ipv6"): string {
    return family === "ipv4"
      ? `https://${routerAddresses.ipv4}:6443`
      : `https://[${routerAddresses.ipv6}]:6443`;
  }

  /** To issue certificates, of kubelets for example; not for one that was attached. */
  get pki(): Pki {
    if (!this.#pki) throw new Error("the certificate authority of an attached control plane is elsewhere");
    return this.#pki;
  }

  /** kubectl as admin: ``await controlPlane.kubectl`get pods -A` `` (zx). */
  get kubectl() {
    return zx({
      quiet: true,
      shell: "/bin/bash",
      prefix: `set -euo pipefail; ${kubernetes("kubectl")} --kubeconfig ${this.kubeconfig} `,
    });
  }

  /** From now on the API server refuses connections. */
  async stopServer(): Promise<void> {
    await this.#server?.stop("SIGKILL");
    this.#server = undefined;
  }

  async startServer(): Promise<void> {
    this.#server ??= this.#startServer();
    await this.ready();
  }

  /** Copies what the API server knows, to restore it later. */
  async backUp(): Promise<void> {
    await this.#withoutStore((dir) => cpSync(dir, `${dir}-backup`, { recursive: true }));
  }

  /** As after a disaster: what the API server knows, its revision too, is what it was at the last `backUp`. */
  async restore(): Promise<void> {
    await this.#withoutStore((dir) => {
      rmSync(dir, { recursive: true });
      cpSync(`${dir}-backup`, dir, { recursive: true });
    });
  }

  async #withoutStore(change: (dir: string) => void): Promise<void> {
    const store = this.#store;
    if (!store) throw new Error("the store of an attached control plane is elsewhere");
    await this.stopServer();
    await store.service.stop("SIGTERM");
    change(store.dir);
    store.service = store.start();
    await this.startServer();
  }

  async ready(timeout = 60_000): Promise<void> {
    await until(
      "the API server to be ready",
      async () => {
        if (!this.#server?.running) throw new Error(`the API server has ended: ${this.#server?.tail()}`);
        return ((await this.api.get("/readyz").catch(() => "")) as unknown as string) === "ok";
      },
      { timeout, every: 50, why: () => this.#server?.tail() ?? "" },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync();
  }
}

/** The machine, as a guest of qemu's user network sees it. */
const guestsHost = "10.0.2.2";

const serverNames = [
  ...[
    guestsHost,
    "127.0.0.1",
    "::1",
    ...Object.values(routerAddresses),
    ...Object.values(apiServiceAddresses),
  ].map((address) => `IP:${address}`),
  ...["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map((name) => `DNS:${name}`),
];

function etcdFlags(dir: string): string[] {
  return [
    `--data-dir=${dir}/etcd`,
    "--listen-client-urls=http://127.0.0.1:2379",
    "--advertise-client-urls=http://127.0.0.1:2379",
    "--listen-peer-urls=http://127.0.0.1:2380",
    "--unsafe-no-fsync",
  ];
}

function serverFlags(pki: string, families: Families): string[] {
  return [
    "--etcd-servers=http://127.0.0.1:2379",
    "--secure-port=6443",
    "--bind-address=::",
    `--advertise-address=${families === "ipv6" ? routerAddresses.ipv6 : routerAddresses.ipv4}`,
    `--tls-cert-file=${pki}/apiserver.crt`,
    `--tls-private-key-file=${pki}/apiserver.key`,
    `--client-ca-file=${pki}/ca.crt`,
    "--allow-privileged=true",
    "--authorization-mode=Node,RBAC",
    "--enable-admission-plugins=NodeRestriction",
    `--service-cluster-ip-range=${join(serviceRanges, families)}`,
    "--service-account-issuer=https://kubernetes.default.svc",
    `--service-account-key-file=${pki}/sa.pub`,
    `--service-account-signing-key-file=${pki}/sa.key`,
    `--kubelet-client-certificate=${pki}/kubelet-client.crt`,
    `--kubelet-client-key=${pki}/kubelet-client.key`,
    "--kubelet-preferred-address-types=InternalIP",
  ];
}

// The default limits alone make pod CIDRs take 4 s.
const clientFlags = [
  "--bind-address=127.0.0.1",
  "--leader-elect=false",
  "--authentication-skip-lookup=true",
  "--kube-api-qps=300",
  "--kube-api-burst=600",
];

function controllerFlags(pki: string, families: Families, wholeNodes: boolean): string[] {
  // Nobody sends heartbeats for light nodes: the life cycle controller would taint them.
  const light = [
    "node-ipam-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
  ];
  return [
    ...clientFlags,
    `--controllers=${wholeNodes ? "*" : light.join(",")}`,
    "--use-service-account-credentials=true",
    `--service-account-private-key-file=${pki}/sa.key`,
    `--root-ca-file=${pki}/ca.crt`,
    `--cluster-signing-cert-file=${pki}/ca.crt`,
    `--cluster-signing-key-file=${pki}/ca.key`,
    "--allocate-node-cidrs=true",
    `--cluster-cidr=${join(podRanges, families)}`,
    `--service-cluster-ip-range=${join(serviceRanges, families)}`,
  ];
}

async function firstLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  const { value } = await stream.getReader().read();
  if (!value) throw new Error("the forward to the API server did not start");
  return new TextDecoder().decode(value).trim();
}
