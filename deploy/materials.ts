/**
 * The bill of materials of an image, as SPDX 2.3 in JSON, from the records of those who made its parts: dpkg's of the
 * Debian packages, Go's in the plugins, npm's lock file for what is compiled into the agent. No scanner finds the last.
 */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, lstatSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import type { Architecture } from "./architecture.ts";
import { bunVersion, npmPackages, pluginModules } from "./licences.ts";
import type { GoModule } from "./plugins.ts";
import { inImage } from "./tree.ts";

interface Package {
  name: string;
  version: string;
  /** A package URL, by which scanners look for what is known of it. */
  purl: string;
  licence?: string;
  supplier?: string;
  checksums?: { algorithm: string; checksumValue: string }[];
  /** Paths of its files in the image. */
  files?: string[];
  /** What is compiled into it. */
  contains?: Package[];
}

export interface Subject {
  architecture: Architecture;
  /** The image's files, unpacked. */
  root: string;
  /** The image's digest, without which two bills could have one name. */
  digest: string;
  /** When its source was committed, ISO 8601. */
  created: string;
}

export async function billOfMaterials(subject: Subject): Promise<object> {
  const { root, architecture } = subject;
  const debian = debianPackages(root, architecture);
  const plugins = await pluginPackage(root);
  const owned = new Set([...debian, plugins].flatMap(({ files = [] }) => files));
  // the agent, and what the base image has besides its packages
  const rest = paths(root).filter((path) => !owned.has(path));
  return document(subject, [agentPackage(rest), plugins, ...debian]);
}

function agentPackage(files: string[]): Package {
  const { version, license } = packageJson;
  const modules = npmPackages().map(({ name, version, license, integrity }) => ({
    name,
    version,
    purl: `pkg:npm/${name.replace("@", "%40")}@${version}`,
    licence: license,
    checksums: [{ algorithm: "SHA512", checksumValue: hex(integrity.replace("sha512-", "")) }],
  }));
  const bun = { name: "bun", version: bunVersion, purl: `pkg:npm/bun@${bunVersion}`, licence: "MIT" };
  const name = "wigglenet";
  return {
    name,
    version,
    purl: `pkg:generic/wigglenet@${version}`,
    licence: license,
    files,
    contains: [bun, ...modules],
  };
}

async function pluginPackage(root: string): Promise<Package> {
  const modules = await pluginModules(join(root, inImage.plugins));
  const own = ({ path }: GoModule) => path === "github.com/containernetworking/plugins";
  const files = paths(root).filter(
    (path) => path.startsWith(`${inImage.plugins}/`) || path.startsWith("usr/share/doc/cni-plugins/"),
  );
  const contains = modules.filter((module) => !own(module)).map(goPackage);
  return { ...goPackage(modules.find(own)!), licence: "Apache-2.0", files, contains };
}

function goPackage({ path, version, sum }: GoModule): Package {
  const name = path === "std" ? "stdlib" : path;
  return {
    name,
    version,
    purl: `pkg:golang/${name}@${version}`,
    ...(sum ? { checksums: [{ algorithm: "SHA256", checksumValue: hex(sum.replace("h1:", "")) }] } : {}),
  };
}

function debianPackages(root: string, architecture: Architecture): Package[] {
  const records = join(root, "var/lib/dpkg/status.d");
  const names = readdirSync(records).filter((name) => !name.endsWith(".md5sums"));
  return names.sort().map((record) => {
    const text = readFileSync(join(records, record), "utf8");
    const field = (key: string) => new RegExp(`^${key}: (.*)$`, "m").exec(text)?.[1] ?? "";
    const [name, version] = [field("Package"), field("Version")];
    const sums = join(records, `${record}.md5sums`);
    const listed = existsSync(sums) ? readFileSync(sums, "utf8").trimEnd().split("\n") : [];
    const files = listed.map((line) => line.slice(34)).filter((path) => isFile(join(root, path)));
    const of = [record, `${record}.md5sums`].map((file) => `var/lib/dpkg/status.d/${file}`);
    return {
      name,
      version,
      purl: `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=debian-12`,
      supplier: `Organization: ${field("Maintainer").replace(/ <(.*)>/, " ($1)")}`,
      files: [...files, ...of.filter((path) => existsSync(join(root, path)))],
    };
  });
}

async function document(
  { architecture, root, digest, created }: Subject,
  packages: Package[],
): Promise<object> {
  const name = `wigglenet-v${packageJson.version}-image-linux-${architecture}`;
  const all = [
    ...new Map(packages.flatMap((each) => [each, ...(each.contains ?? [])]).map((p) => [p.purl, p])).values(),
  ];
  const files = await Promise.all(
    packages
      .flatMap(({ files = [] }) => files)
      .map(async (path) => ({ path, ...(await sums(join(root, path))) })),
  );
  const sha1 = new Map(files.map((file) => [file.path, file.sha1]));
  const relationship = (from: string, relationshipType: string, to: string) => ({
    spdxElementId: from,
    relationshipType,
    relatedSpdxElement: to,
  });
  return {
    spdxVersion: "SPDX-2.3",
    dataLicense: "CC0-1.0",
    SPDXID: "SPDXRef-DOCUMENT",
    name,
    documentNamespace: `https://spdx.org/spdxdocs/${name}-${digest}`,
    creationInfo: {
      created,
      creators: ["Organization: Wigglenet developers", `Tool: wigglenet-${packageJson.version}`],
    },
    packages: all.map((each) => packageEntry(each, sha1)),
    files: files.map(({ path, sha1, sha256 }) => ({
      fileName: `./${path}`,
      SPDXID: fileId(path),
      checksums: [
        { algorithm: "SHA1", checksumValue: sha1 },
        { algorithm: "SHA256", checksumValue: sha256 },
      ],
      licenseConcluded: "NOASSERTION",
      copyrightText: "NOASSERTION",
    })),
    relationships: [
      ...packages.map((each) => relationship("SPDXRef-DOCUMENT", "DESCRIBES", packageId(each))),
      ...packages.flatMap((each) => [
        ...(each.files ?? []).map((path) => relationship(packageId(each), "CONTAINS", fileId(path))),
        ...(each.contains ?? []).map((part) => relationship(packageId(each), "CONTAINS", packageId(part))),
      ]),
    ],
  };
}

function packageEntry(each: Package, sha1: Map<string, string>): object {
  const {
    name,
    version,
    purl,
    licence = "NOASSERTION",
    supplier = "NOASSERTION",
    checksums,
    files = [],
  } = each;
  // the specification's: of the sorted checksums of the package's files
  const verification = createHash("sha1")
    .update(
      files
        .map((path) => sha1.get(path)!)
        .sort()
        .join(""),
    )
    .digest("hex");
  return {
    name,
    SPDXID: packageId(each),
    versionInfo: version,
    supplier,
    downloadLocation: "NOASSERTION",
    filesAnalyzed: files.length > 0,
    ...(files.length > 0 ? { packageVerificationCode: { packageVerificationCodeValue: verification } } : {}),
    ...(checksums ? { checksums } : {}),
    licenseConcluded: "NOASSERTION",
    licenseDeclared: licence,
    copyrightText: "NOASSERTION",
    externalRefs: [{ referenceCategory: "PACKAGE-MANAGER", referenceType: "purl", referenceLocator: purl }],
  };
}

const packageId = ({ purl }: Package) => identifier("Package", purl.replace(/^pkg:|\?.*$/g, ""));
const fileId = (path: string) => identifier("File", path);

/** SPDX allows letters, digits, dots and dashes alone: what is lost is told apart by a checksum. */
function identifier(kind: string, name: string): string {
  const sum = createHash("sha256").update(name).digest("hex").slice(0, 8);
  return `SPDXRef-${kind}-${basename(name).replace(/[^A-Za-z0-9.-]+/g, "-")}-${sum}`;
}

/** Every regular file below a folder, sorted. */
function paths(root: string): string[] {
  const found = [...new Bun.Glob("**/*").scanSync({ cwd: root, dot: true, onlyFiles: true })];
  return found.filter((path) => isFile(join(root, path))).sort();
}

const isFile = (path: string) => lstatSync(path, { throwIfNoEntry: false })?.isFile() ?? false;

async function sums(path: string): Promise<{ sha1: string; sha256: string }> {
  const [sha1, sha256] = [createHash("sha1"), createHash("sha256")];
  for await (const chunk of createReadStream(path)) for (const hash of [sha1, sha256]) hash.update(chunk);
  return { sha1: sha1.digest("hex"), sha256: sha256.digest("hex") };
}

const hex = (base64: string) => Buffer.from(base64, "base64").toString("hex");
