import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { familyOf } from "../../net/address.ts";
import { annotationsOf, fromAnnotations, fromNode, saysAll } from "./node.ts";

setDefaultTimeout(60_000);

const key = Buffer.alloc(32, 7).toString("base64");
const agent = JSON.stringify({ version: "1.0.0", nodeIps: "f896c49ac9171bdd", tunnelled: 2 });

describe("properties", () => {
  const text = fc.oneof(
    fc.string(),
    fc.json(),
    fc.array(fc.oneof(fc.ipV4(), fc.ipV6(), fc.string())).map((list) => JSON.stringify(list)),
    fc.constantFrom("null", "[]", "{}", "", agent, key),
  );
  const annotations = fc.record(
    {
      "wigglenet/public-key": text,
      "wigglenet/node-ips": text,
      "wigglenet/pod-cidrs": text,
      "wigglenet/agent": text,
    },
    { requiredKeys: [] },
  );

  test("no annotation throws, and what is not as the contract has it costs the key", () => {
    fc.assert(
      fc.property(annotations, (given) => {
        const node = { metadata: { name: "n", annotations: given as Record<string, string> } };
        saysAll(node.metadata.annotations);
        for (const record of [fromAnnotations(node), fromNode(node)])
          if (record.problems.some((text) => text.includes(" is not a")) && record.publicKey !== undefined)
            return false;
        return true;
      }),
      { numRuns: 1_000 },
    );
  });

  test("what our agent writes is read back as it was meant", () => {
    const usable = fc.integer({ min: 1, max: 250 });
    const address = fc.oneof(
      usable.map((n) => `192.0.2.${n}`),
      usable.map((n) => `2001:db8::${n.toString(16)}`),
    );
    const prefix = fc.oneof(
      usable.map((n) => `10.1.${n}.0/24`),
      usable.map((n) => `fd00:1:0:${n.toString(16)}::/64`),
    );
    const unique = (values: string[]) => [...new Set(values)];
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 32, maxLength: 32 }).filter((bytes) => bytes.some((byte) => byte !== 0)),
        fc.array(prefix, { maxLength: 16 }).map(unique),
        fc.array(address, { maxLength: 8 }).map(unique),
        fc.array(address, { maxLength: 8 }).map(unique),
        (bytes, podCidrs, addresses, others) => {
          const endpoints = unique([...addresses, ...others]);
          const publicKey = Buffer.from(bytes).toString("base64");
          const written = annotationsOf({ version: "1.0.0", publicKey, podCidrs, addresses, endpoints });
          const node = { metadata: { name: "n", annotations: written as Record<string, string> } };
          const record = fromAnnotations(node);
          expect(saysAll(node.metadata.annotations)).toBe(true);
          expect({
            ...record,
            podCidrs: [...record.podCidrs].sort(),
            addresses: [...record.addresses].sort(),
          }).toEqual({
            name: "n",
            created: "",
            publicKey,
            podCidrs: [...podCidrs].sort(),
            addresses: [...addresses].sort(),
            endpoints,
            clearToNodes: false,
            problems: [],
          });
          expect(record.podCidrs.map(familyOf).join()).toMatch(/^(ipv4,?)*(ipv6,?)*$/);
        },
      ),
    );
  });
});
