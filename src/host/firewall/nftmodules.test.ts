import { expect, test } from "bun:test";
import { lackingIn, samples } from "./nftmodules.ts";

const all = samples({ tunnel: true, masquerade: true });

/** As nft says that the kernel refused the sample of each of these modules, line by line. */
function refusals(modules: string[], reason = "No such file or directory"): string {
  return all
    .flatMap(({ modules: [module = ""], line }, index) =>
      modules.includes(module)
        ? [`/dev/stdin:${index + 1}:33-37: Error: Could not process rule: ${reason}`, line, "    ^^^^^"]
        : [],
    )
    .join("\n");
}

const fib = ["nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6"];

test.each<[name: string, stderr: string, lacking: string[]]>([
  ["nothing", "", []],
  ["one module", refusals(["nft_fib_inet"]), fib],
  ["one module with the text of other kernels", refusals(["nft_fib_inet"], "Operation not supported"), fib],
  ["several modules", refusals(["nft_ct", "nft_masq"]), ["nft_ct", "nft_masq"]],
  ["the module of a type of chain", refusals(["nft_chain_nat"]), ["nft_chain_nat"]],
  // Then the kernel has no place for the others, which says nothing of them.
  [
    "tables of inet",
    refusals(
      all.map(({ modules: [module = ""] }) => module),
      "Address family not supported by protocol",
    ),
    ["nf_tables"],
  ],
  [
    "one module without its line",
    "internal:0:0-0: Error: Could not process rule: No such file or directory\n",
    [...new Set(all.flatMap(({ modules }) => modules))],
  ],
  ["a right that is missing", "netlink: Error: cache initialization failed: Operation not permitted\n", []],
  ["a kernel that is busy", refusals(["nft_ct"], "Device or resource busy"), []],
  ["a table that is there", refusals(["nf_tables"], "File exists"), []],
  ["memory that is short", refusals(["nft_ct"], "Cannot allocate memory"), []],
  ["a word that it does not know", "/dev/stdin:4:5-9: Error: syntax error, unexpected string\n", []],
  ["its own absence", "cannot start nft", []],
])("what nft says of %s", (_, stderr, lacking) => {
  expect(lackingIn(stderr, all)).toEqual(lacking);
});

// nftables 1.0.6 on Linux 6.18, whose configuration has no CONFIG_NFT_QUEUE and no flow tables.
test("as nft says it of a kernel that lacks modules", () => {
  const named = ["nf_tables", "", "nft_ct", "nft_fib_inet", "nft_queue", "nft_masq", "nf_flow_table_inet"];
  const stderr = `/dev/stdin:5:33-37: Error: Could not process rule: No such file or directory
add rule inet wigglenet-check c queue
                                ^^^^^
/dev/stdin:7:1-66: Error: Could not process rule: No such file or directory
add flowtable inet wigglenet-check f { hook ingress priority 0; }
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
`;
  const asked = named.map((module) => ({ modules: module ? [module] : [], line: "" }));
  expect(lackingIn(stderr, asked)).toEqual(["nft_queue", "nf_flow_table_inet"]);
});

test("what a configuration never uses is not asked for", () => {
  const modules = samples({ tunnel: false, masquerade: false }).flatMap((sample) => sample.modules);
  expect(modules).toEqual(["nf_tables", "nft_ct", "nft_counter", "nft_chain_nat"]);
  expect(samples({ tunnel: false, masquerade: true }).flatMap((sample) => sample.modules)).toContain(
    "nft_masq",
  );
});

test("the table has a name that nobody else's has", () => {
  const [first, second] = [1, 2].map(() => samples({ tunnel: true, masquerade: true })[0]!.line);
  expect(first).not.toBe(second!);
});
