import { describe, expect, test } from "bun:test";
import { parseEnv } from "node:util";
import unit from "../../deploy/wigglenet.service" with { type: "text" };
import { ConfigError, readConfig } from "../config/config.ts";
import { settingNames, settings } from "../config/settings.ts";
import { printStep, type Step } from "../host/command.ts";
import { environmentFile, type Installed, planInstall, planUninstall, settingsOf } from "./install.ts";

const nothing: Installed = {
  executable: "none",
  unit: undefined,
  environment: undefined,
  enabled: false,
  active: false,
  stale: false,
  outdated: false,
};
const everything: Installed = {
  executable: "this",
  unit,
  environment: "NODE_NAME=n1\n",
  enabled: true,
  active: true,
  stale: false,
  outdated: false,
};

const short = (steps: Step[]) =>
  steps.map((step) => (step.kind === "run" ? printStep(step) : `${step.kind} ${step.path}`));
const copied = [
  "install -D -m 0755 /tmp/wigglenet /usr/local/bin/wigglenet.new",
  "mv -f /usr/local/bin/wigglenet.new /usr/local/bin/wigglenet",
];
const restarted = "systemctl restart wigglenet.service";

test.each<[title: string, installed: Installed, expected: string[]]>([
  [
    "nothing",
    nothing,
    [
      ...copied,
      "write /etc/wigglenet/wigglenet.env",
      "write /etc/systemd/system/wigglenet.service",
      "systemctl daemon-reload",
      "systemctl enable wigglenet.service",
      restarted,
    ],
  ],
  ["everything", everything, []],
  ["another executable", { ...everything, executable: "another" }, [...copied, restarted]],
  [
    "an older unit",
    { ...everything, unit: "[Unit]\n" },
    ["write /etc/systemd/system/wigglenet.service", "systemctl daemon-reload", restarted],
  ],
  ["a unit that was not read", { ...everything, stale: true }, ["systemctl daemon-reload", restarted]],
  ["a service that is stopped", { ...everything, active: false }, [restarted]],
  ["a service that runs what was replaced", { ...everything, outdated: true }, [restarted]],
  [
    "a service that is disabled",
    { ...everything, enabled: false },
    ["systemctl enable wigglenet.service", restarted],
  ],
])("install with %s there", (_, installed, expected) => {
  expect(short(planInstall({ self: "/tmp/wigglenet", environment: "" }, installed))).toEqual(expected);
});

test.each<[title: string, installed: Installed, expected: string[]]>([
  ["nothing", nothing, []],
  [
    "everything",
    everything,
    [
      "systemctl disable --now wigglenet.service",
      "rm /etc/systemd/system/wigglenet.service",
      "systemctl daemon-reload",
      "rm /usr/local/bin/wigglenet",
    ],
  ],
  ["the executable alone", { ...nothing, executable: "another" }, ["rm /usr/local/bin/wigglenet"]],
])("uninstall with %s there", (_, installed, expected) => {
  expect(short(planUninstall(installed))).toEqual(expected);
});

describe("environment file", () => {
  test("has every setting with its default and one comment, all commented out", () => {
    const lines = environmentFile({}).split("\n");
    for (const name of settingNames) {
      const at = lines.indexOf(`#${name}=${settings[name].default}`);
      expect(lines[at - 1]).toBe(`# ${settings[name].meaning}`);
    }
    expect(parseEnv(environmentFile({}))).toEqual({});
    expect(environmentFile({ LOG_LEVEL: "" })).toBe(environmentFile({}));
  });

  test("is what is the default, once it is no comment", () => {
    const uncommented = environmentFile({ NODE_NAME: "n1" }).replace(/^#(?=[A-Z])/gm, "");
    expect(readConfig(parseEnv(uncommented))).toEqual(readConfig({ NODE_NAME: "n1" }));
  });

  test.each([
    ["/etc/kubernetes/wigglenet.conf"],
    ["cidr('10.0.0.0/8').first()"],
    ["\"a\" + 'b' # c".replaceAll("'", '"')],
  ])("a value comes back as it was given: %j", (value) => {
    expect(parseEnv(environmentFile({ POD_CIDR_EXPRESSION: value }))).toEqual({ POD_CIDR_EXPRESSION: value });
  });

  test("a value that it cannot hold is refused", () => {
    expect(() => environmentFile({ POD_CIDR_EXPRESSION: `"a" + 'b'` })).toThrow(ConfigError);
  });
});

describe("settings that are wrong are named, all of them", () => {
  const none = undefined;
  test.each<[title: string, environment: string, kubeconfig: string | undefined, mistakes: string[]]>([
    ["no kubeconfig", "NODE_NAME=n1\n", none, ['KUBECONFIG="": must be a kubeconfig file']],
    [
      "one that the service does not see",
      "NODE_NAME=n1\nKUBECONFIG=/root/.kube/config\n",
      "/root/.kube/config",
      ['KUBECONFIG="/root/.kube/config": the service sees nothing of /root: put it into /etc/wigglenet'],
    ],
    [
      "another than in the file that is kept",
      "NODE_NAME=n1\nKUBECONFIG=/etc/one\n",
      "/etc/two",
      [
        "--kubeconfig /etc/two: /etc/wigglenet/wigglenet.env is there, is kept as it is, and has KUBECONFIG=/etc/one",
      ],
    ],
    [
      "several",
      "WIGGLENET_WG_PORT=0\n",
      none,
      ['KUBECONFIG="": must be', 'NODE_NAME="": must be', 'WIGGLENET_WG_PORT="0": must be'],
    ],
  ])("%s", (_, environment, kubeconfig, mistakes) => {
    let found: string[] = [];
    try {
      settingsOf(environment, kubeconfig);
    } catch (error) {
      found = (error as ConfigError).mistakes;
    }
    expect(found.map((each, index) => each.startsWith(mistakes[index] ?? "none"))).toEqual(
      mistakes.map(() => true),
    );
  });

  test("right ones", () => {
    expect(settingsOf("NODE_NAME=n1\nKUBECONFIG=/etc/one\n", "/etc/one").kubeconfig).toBe("/etc/one");
  });
});
