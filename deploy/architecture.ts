/** The architectures that are released. */
import { join } from "node:path";
import { repository } from "../test/lab/cache.ts";

/** As OCI and Go name them. */
export const architectures = ["amd64", "arm64"] as const;
export type Architecture = (typeof architectures)[number];

/** What `npm run build` and `npm run build:arm64` make. */
export const executables: Record<Architecture, string> = {
  amd64: join(repository, "dist/wigglenet"),
  arm64: join(repository, "dist/wigglenet-arm64"),
};
