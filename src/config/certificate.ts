/** The certificate of the metrics endpoint, from files that may be renewed at any time. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";

export interface CertificateFiles {
  cert: string;
  key: string;
  /** Of whoever may ask; undefined: anybody may. */
  clientCa: string | undefined;
}

/** PEM, as Bun.serve takes it. */
export interface Certificate {
  cert: string;
  key: string;
  ca?: string;
  requestCert?: true;
  rejectUnauthorized?: true;
}

/** Which of the files is wrong, and why. */
export class CertificateError extends Error {
  constructor(
    readonly file: keyof CertificateFiles,
    message: string,
  ) {
    super(message);
  }
}

/** Reads the files; throws a `CertificateError` for the first that is none. */
export function readCertificate(files: CertificateFiles): Certificate {
  const cert = read("cert", files.cert);
  parsed("cert", () => new X509Certificate(cert), "is no certificate in PEM");
  const key = read("key", files.key);
  parsed("key", () => createPrivateKey(key), "is no private key in PEM");
  if (files.clientCa === undefined) return { cert, key };
  const ca = read("clientCa", files.clientCa);
  parsed("clientCa", () => new X509Certificate(ca), "is no certificate in PEM");
  return { cert, key, ca, requestCert: true, rejectUnauthorized: true };
}

/** The same, if key and certificate fit: of files that are being renewed they do not for a moment. */
export function readFittingCertificate(files: CertificateFiles): Certificate {
  const certificate = readCertificate(files);
  if (!new X509Certificate(certificate.cert).checkPrivateKey(createPrivateKey(certificate.key)))
    throw new CertificateError("key", `${files.key} is not the key of the certificate ${files.cert}`);
  return certificate;
}

function read(file: keyof CertificateFiles, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new CertificateError(file, `cannot be read: ${(error as Error).message}`);
  }
}

function parsed<T>(file: keyof CertificateFiles, parse: () => T, message: string): T {
  try {
    return parse();
  } catch {
    throw new CertificateError(file, message);
  }
}
