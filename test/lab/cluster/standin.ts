/** Stand-ins for base images, made from Debian's packages. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Architecture } from "../../../deploy/architecture.ts";
import { $ } from "../image/buildah.ts";

/** The Debian packages that distroless' own build puts into `base-nossl`. */
const BASE_PACKAGES = ["base-files", "netbase", "tzdata", "media-types", "ca-certificates", "libc6"];

/** Says in the image itself that a stand-in is below. */
export const STAND_IN_LABEL = "wigglenet.base";

const SUITE = "bookworm";
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

interface Sources {
  main: string;
  security: string;
}

/** The mirrors that this machine's apt uses: where no registry can be reached, these can. */
async function aptSources(): Promise<Sources> {
  const site = async (codename: string) => {
    const format = "$(SITE)";
    const { stdout } =
      await $`apt-get indextargets --format ${format} ${"Created-By: Packages"} ${`Codename: ${codename}`}`;
    const first = stdout.split("\n")[0]?.trim();
    if (!first) throw new Error(`apt on this machine has no source for ${codename}: stand-ins need one`);
    return first;
  };
  return { main: await site(SUITE), security: await site(`${SUITE}-security`) };
}

/** Makes a base image from a tree in a tar file. */
async function imageFromTar(name: string, architecture: Architecture, tar: string): Promise<void> {
  const container = (await $`buildah from scratch`).stdout.trim();
  await $`buildah add -q ${container} ${tar} /`;
  await $`buildah config --arch ${architecture} --env ${`PATH=${PATH}`} --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt --label ${`${STAND_IN_LABEL}=stand-in`} --user 0 --workingdir / ${container}`;
  await $`buildah commit -q --rm --timestamp 0 ${container} ${name}`;
}

async function debianSlim(work: string, sources: Sources): Promise<string> {
  const root = join(work, "slim");
  await $`debootstrap --variant=minbase ${SUITE} ${root} ${sources.main}`.quiet();
  await $`chroot ${root} apt-get clean`;
  await $`rm -rf ${["var/lib/apt/lists", "usr/share/man", "usr/share/locale", "etc/apt/sources.list", "etc/resolv.conf", "etc/hostname"].map((path) => join(root, path))}`;
  const stanza = (uri: string, suites: string) =>
    `Types: deb\nURIs: ${uri}\nSuites: ${suites}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n`;
  await writeFile(
    join(root, "etc/apt/sources.list.d/debian.sources"),
    `${stanza(sources.main, `${SUITE} ${SUITE}-updates`)}\n${stanza(sources.security, `${SUITE}-security`)}`,
  );
  const tar = join(work, "slim.tar");
  await $`tar --sort=name --numeric-owner --one-file-system --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -C ${root} -cf ${tar} .`;
  return tar;
}

async function baseNossl(work: string, architecture: Architecture): Promise<string> {
  const root = join(work, "base");
  const debs = join(work, "debs");
  await mkdir(join(root, "var/lib/dpkg/status.d"), { recursive: true });
  await mkdir(debs);
  const apt = await aptFor(architecture, work);
  await apt("update");
  await apt("download", ...BASE_PACKAGES);
  for (const name of BASE_PACKAGES) {
    const record = join(root, "var/lib/dpkg/status.d", name);
    await $({ cwd: debs })`dpkg-deb --fsys-tarfile ${name}_*.deb | tar -x -C ${root}`;
    await $({ cwd: debs })`dpkg-deb -f ${name}_*.deb > ${record}`;
    await $({ cwd: debs })`dpkg-deb --ctrl-tarfile ${name}_*.deb | tar -x -O ./md5sums > ${record}.md5sums`;
  }
  const certificates = join(root, "etc/ssl/certs/ca-certificates.crt");
  await $`mkdir -p ${join(root, "etc/ssl/certs")} && find ${join(root, "usr/share/ca-certificates")} -name '*.crt' | LC_ALL=C sort | xargs cat > ${certificates}`;
  await $`rm -rf ${["usr/share/ca-certificates", "usr/sbin/update-ca-certificates", "usr/share/man"].map((path) => join(root, path))}`;
  const etc = (file: string, text: string) => writeFile(join(root, "etc", file), text);
  await etc(
    "passwd",
    "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
  );
  await etc("group", "root:x:0:\nnobody:x:65534:\n");
  await etc("nsswitch.conf", "hosts: files dns\n");
  await $`install -d -m1777 ${join(root, "tmp")}`;
  const tar = join(work, "base.tar");
  await $`tar --sort=name --numeric-owner --mtime=@0 -C ${root} -cf ${tar} .`;
  return tar;
}

/** apt-get for another architecture than the machine's, with lists of its own; downloads into `work`/debs. */
async function aptFor(architecture: Architecture, work: string) {
  const state = join(work, "apt");
  await mkdir(join(state, "lists/partial"), { recursive: true });
  await mkdir(join(state, "cache/archives/partial"), { recursive: true });
  await writeFile(join(state, "status"), "");
  const options = [
    `APT::Architecture=${architecture}`,
    `APT::Architectures=${architecture}`,
    "APT::Sandbox::User=root",
    `Dir::State=${state}`,
    `Dir::State::status=${state}/status`,
    `Dir::Cache=${state}/cache`,
  ].flatMap((option) => ["-o", option]);
  return (...argv: string[]) => $({ cwd: join(work, "debs") })`apt-get -qq ${options} ${argv}`;
}

/**
 * Makes an image from Debian's packages in the place of a base image, in buildah's storage
 * (`CONTAINERS_STORAGE_CONF`), for machines that reach Debian's mirror and no registry.
 */
export async function makeStandIn(
  name: string,
  { base, architecture }: { base: string; architecture: Architecture },
): Promise<void> {
  const work = await mkdtemp("/var/tmp/wigglenet-standin-");
  try {
    const tar = base.includes("/distroless/")
      ? await baseNossl(work, architecture)
      : await debianSlim(work, await aptSources());
    await imageFromTar(name, architecture, tar);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
