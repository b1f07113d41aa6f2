import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { readConfig } from "./config.ts";
import { type SettingName, settingNames, settings } from "./settings.ts";

test("the configuration reads what is in the table, and nothing else", () => {
  const read = new Set<string>();
  const env: Record<string, string> = {
    NODE_NAME: "n1",
    POD_CIDR_SOURCE_IPV4: "file",
    POD_CIDR_SOURCE_PATH: "/etc/pod-cidrs",
    POD_CIDR_SOURCE_IPV6: "expression",
    POD_CIDR_EXPRESSION: "[]",
    ENABLE_METRICS: "1",
  };
  const get = (all: typeof env, name: string) => {
    read.add(name);
    return all[name];
  };
  readConfig(new Proxy(env, { get }));
  expect([...read].sort()).toEqual([...settingNames].sort());
});

test("each default is what is meant where nothing is set", () => {
  const defaults = Object.fromEntries(settingNames.map((name) => [name, settings[name].default]));
  expect(readConfig({ ...defaults, NODE_NAME: "n1" })).toEqual(readConfig({ NODE_NAME: "n1" }));
});

// In a manifest an env without a value, and in an environment file NAME= with nothing after it, mean: as if it were not there.
test.each(settingNames.filter((name) => name !== "NODE_NAME"))("%s that is empty counts as unset", (name) => {
  const env = {
    NODE_NAME: "n1",
    POD_CIDR_SOURCE_IPV4: "file",
    POD_CIDR_SOURCE_PATH: "/etc/pod-cidrs",
    ENABLE_METRICS: "1",
    ENABLE_FLOWTABLE: "1",
    FLOWTABLE_DEVICES: "eth0",
  };
  const read = (env: Record<string, string>) => {
    try {
      const { podCidrExpression: _, ...config } = readConfig(env);
      return config;
    } catch (error) {
      return (error as Error).message;
    }
  };
  const { [name as "NODE_NAME"]: _, ...unset } = env;
  expect(read({ ...env, [name]: "" })).toEqual(read(unset as typeof env));
});

test("docs/configuration.md explains every setting, with its default", () => {
  const rows = readFileSync("docs/configuration.md", "utf8").matchAll(/^\| (`[A-Z].*?) \| (.*?) \| /gm);
  const documented = [...rows].flatMap(([, variables = "", fallback = ""]) =>
    [...variables.matchAll(/`([A-Z0-9_]+)`/g)].map(([, name]) => [
      name as SettingName,
      // What has no default says so in words.
      /^`(.*)`$/.exec(fallback)?.[1] ?? "",
    ]),
  );
  const table = settingNames.map((name) => [name, settings[name].default]);
  expect(documented.sort()).toEqual(table.sort());
});

test("a meaning is one line", () => {
  for (const name of settingNames) expect(settings[name].meaning).toMatch(/^\S.{5,100}\S$/);
});
