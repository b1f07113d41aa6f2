/** A certificate authority for one cluster, and what it issues. EC keys: all of it takes milliseconds. */
import { readFileSync } from "node:fs";
import { run } from "../process.ts";

const ecKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

export interface Issued {
  cert: string;
  key: string;
}

export class Pki {
  /** Where name.crt and name.key are; ca.crt, ca.key, sa.key (service account tokens) and sa.pub among them. */
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async create(dir: string): Promise<Pki> {
    const pki = new Pki(dir);
    await Bun.write(`${dir}/req.conf`, "[req]\ndistinguished_name = dn\n[dn]\n");
    await Promise.all([
      pki.#request(
        "ca",
        "/CN=lab-ca",
        ["basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign,digitalSignature"],
        [],
      ),
      run([
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        `${dir}/sa.key`,
      ]),
    ]);
    await run(["openssl", "pkey", "-in", `${dir}/sa.key`, "-pubout", "-out", `${dir}/sa.pub`]);
    return pki;
  }

  get ca(): string {
    return readFileSync(`${this.dir}/ca.crt`, "utf8");
  }

  /**
   * A certificate for clients and servers, as files.
   * @param subject such as "/O=system:nodes/CN=system:node:n1"
   * @param names of a server: "IP:127.0.0.1", "DNS:localhost"
   */
  async issue(name: string, subject: string, names: readonly string[] = []): Promise<Issued> {
    const extensions = ["extendedKeyUsage=serverAuth,clientAuth"];
    if (names.length > 0) extensions.push(`subjectAltName=${names.join(",")}`);
    const signer = ["-CA", `${this.dir}/ca.crt`, "-CAkey", `${this.dir}/ca.key`];
    return await this.#request(name, subject, extensions, signer);
  }

  async #request(name: string, subject: string, extensions: string[], signer: string[]): Promise<Issued> {
    const issued = { cert: `${this.dir}/${name}.crt`, key: `${this.dir}/${name}.key` };
    const files = ["-config", `${this.dir}/req.conf`, "-keyout", issued.key, "-out", issued.cert];
    const what = ["-subj", subject, "-days", "30", ...extensions.flatMap((e) => ["-addext", e])];
    await run(["openssl", "req", "-x509", ...ecKey, ...files, ...what, ...signer]);
    return issued;
  }
}

/** A kubeconfig (JSON is YAML) for a client with a certificate or with a token in a file that may change. */
export function kubeconfig(
  server: string,
  ca: { file: string } | { pem: string },
  user: Issued | { tokenFile: string },
): string {
  const authority =
    "file" in ca ? { "certificate-authority": ca.file } : { "certificate-authority-data": btoa(ca.pem) };
  const credentials =
    "tokenFile" in user
      ? { tokenFile: user.tokenFile }
      : { "client-certificate": user.cert, "client-key": user.key };
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    clusters: [{ name: "lab", cluster: { server, ...authority } }],
    users: [{ name: "lab", user: credentials }],
    contexts: [{ name: "lab", context: { cluster: "lab", user: "lab" } }],
    "current-context": "lab",
  });
}
