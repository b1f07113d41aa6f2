import { describe, expect, test } from "bun:test";
import { isIPv4, isIPv6 } from "node:net";
import fc from "fast-check";
import { Address4, Address6 } from "ip-address";
import {
  ancestorKey,
  compareAddresses,
  contains,
  familyOf,
  hostPrefix,
  indexIn,
  isUsable,
  lastKey,
  lengthOf,
  nthAddress,
  overlaps,
  parseAddress,
  parsePrefix,
  sizeOf,
  sortKey,
} from "./address.ts";

const none = undefined;

test.each<[text: string, expected: string | undefined]>([
  ["192.0.2.1", "192.0.2.1"],
  ["0.0.0.0", "0.0.0.0"],
  ["255.255.255.255", "255.255.255.255"],
  // 010 is 8 to the C library and 10 to others: kubernetes#100895, CVE-2021-29923 in Go.
  ["010.0.0.1", none],
  ["10.0.0.01", none],
  ["192.0.2", none],
  ["10.1", none],
  ["3221225985", none],
  ["0xc0.0.2.1", none],
  ["0xc0000201", none],
  ["192.0.2.256", none],
  ["192.0.2.-1", none],
  ["192.0.2.1.", none],
  ["192.0.2.1/32", none],
  [" 192.0.2.1", none],
  ["192.0.2.1\n", none],
  ["١٩٢.0.2.1", none],
  ["", none],
  [".", none],
  [":", none],
  ["::", "::"],
  ["::1", "::1"],
  ["2001:DB8::0001", "2001:db8::1"],
  ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
  ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
  ["2001:db8::192.0.2.1", "2001:db8::c000:201"],
  ["2001:db8::010.0.0.1", none],
  ["fe80::1%eth0", none],
  ["2001:db8::1%0", none],
  // One program's IPv4 is another's IPv6.
  ["::ffff:192.0.2.1", none],
  ["::ffff:c000:201", none],
  ["::fffe:c000:201", "::fffe:c000:201"],
  ["2001:db8::1::2", none],
  ["2001:db8:1", none],
  ["1:2:3:4:5:6:7:8:9", none],
  ["1:2:3:4:5:6:7:8::", none],
  ["2001:db8::12345", none],
  ["2001:db8::g", none],
  [":1::2", none],
  ["[2001:db8::1]", none],
  ["2001:db8::1/128", none],
])("parseAddress(%p) is %p", (text, expected) => {
  expect(parseAddress(text)).toBe(expected as string);
});

test.each<[text: string, expected: string | undefined]>([
  ["10.1.0.0/24", "10.1.0.0/24"],
  ["10.1.0.7/24", "10.1.0.0/24"],
  ["10.1.2.3/0", "0.0.0.0/0"],
  ["10.1.2.3/32", "10.1.2.3/32"],
  ["10.1.2.3/33", none],
  ["10.1.2.3/024", none],
  ["10.1.2.3/+24", none],
  ["10.1.2.3/-1", none],
  ["10.1.2.3/ 24", none],
  ["10.1.2.3/24/24", none],
  ["10.1.2.3/255.255.255.0", none],
  ["10.1.2.3/", none],
  ["10.1.2.3", none],
  ["/24", none],
  ["", none],
  ["10.1.2/24", none],
  ["2001:DB8::1/64", "2001:db8::/64"],
  ["2001:db8::ffff/127", "2001:db8::fffe/127"],
  ["2001:db8::/129", none],
  ["2001:db8::/1280", none],
  ["2001:db8::%eth0/64", none],
  ["::/0", "::/0"],
  ["::ffff:10.0.0.0/104", none],
])("parsePrefix(%p) is %p", (text, expected) => {
  expect(parsePrefix(text)).toBe(expected as string);
});

test.each<[outer: string, inner: string, contained: boolean, overlap: boolean]>([
  ["10.1.0.0/24", "10.1.0.0/24", true, true],
  ["10.1.0.0/16", "10.1.255.0/24", true, true],
  ["10.1.255.0/24", "10.1.0.0/16", false, true],
  ["10.1.0.0/24", "10.1.0.255", true, true],
  ["10.1.0.0/24", "10.1.1.0", false, false],
  ["10.1.0.0/25", "10.1.0.128/25", false, false],
  ["10.1.0.7", "10.1.0.7", true, true],
  ["10.1.0.7", "10.1.0.7/32", true, true],
  ["0.0.0.0/0", "255.255.255.255", true, true],
  ["0.0.0.0/0", "::1", false, false],
  ["::/0", "10.0.0.1", false, false],
  ["2001:db8::/64", "2001:db8::ffff:ffff:ffff:ffff", true, true],
  ["2001:db8::/64", "2001:db8:0:1::", false, false],
  ["2001:db8::/127", "2001:db8::1/128", true, true],
])("%s contains %s: %p, overlaps it: %p", (outer, inner, contained, overlap) => {
  expect(contains(outer, inner)).toBe(contained);
  expect([overlaps(outer, inner), overlaps(inner, outer)]).toEqual([overlap, overlap]);
});

test.each<[value: string, usable: boolean]>([
  ["10.0.0.0/8", true],
  ["100.64.0.0/10", true],
  ["192.0.2.1", true],
  ["223.255.255.255", true],
  ["224.0.0.1", false],
  ["240.0.0.1", false],
  ["255.255.255.255", false],
  ["127.0.0.1", false],
  ["169.254.169.254", false],
  ["0.0.0.1", false],
  // The whole Internet as pod CIDR would take every node's default route.
  ["0.0.0.0/0", false],
  ["128.0.0.0/1", false],
  ["fd00::/8", true],
  ["2001:db8::1", true],
  ["2000::/3", true],
  ["64:ff9b::/96", true],
  ["::/0", false],
  ["::1", false],
  ["::", false],
  ["fe80::1", false],
  ["febf::1", false],
  ["fec0::1", true],
  ["ff02::1", false],
])("isUsable(%p) is %p", (value, usable) => {
  expect(isUsable(value)).toBe(usable);
});

describe("order and arithmetic", () => {
  test("IPv4 first, then by number, then shorter prefixes first", () => {
    const ordered = [
      "0.0.0.0/0",
      "9.0.0.0/8",
      "10.0.0.0/8",
      "10.0.0.0/24",
      "10.0.0.0",
      "10.0.0.2",
      "10.0.0.10",
      "::/0",
      "::1",
      "2001:db8::/32",
      "2001:db8::/64",
      "2001:db8::9",
      "2001:db8::10",
      "fd00::/8",
    ];
    expect([...ordered].reverse().sort(compareAddresses)).toEqual(ordered);
  });

  test.each<[prefix: string, index: bigint, address: string]>([
    ["10.1.0.0/24", 0n, "10.1.0.0"],
    ["10.1.0.0/24", 1n, "10.1.0.1"],
    ["10.1.0.0/16", 256n, "10.1.1.0"],
    ["10.1.0.0/24", 255n, "10.1.0.255"],
    ["2001:db8::/64", 1n, "2001:db8::1"],
    ["2001:db8::/64", 2n ** 64n - 1n, "2001:db8::ffff:ffff:ffff:ffff"],
  ])("%s: number %p is %s", (prefix, index, address) => {
    expect(nthAddress(prefix, index)).toBe(address);
    expect(indexIn(prefix, address)).toBe(index);
  });

  test.each<[value: string, family: "ipv4" | "ipv6", length: number, size: bigint, host: string]>([
    ["10.0.0.1", "ipv4", 32, 1n, "10.0.0.1/32"],
    ["10.0.0.0/24", "ipv4", 24, 256n, ""],
    ["0.0.0.0/0", "ipv4", 0, 2n ** 32n, ""],
    ["2001:db8::1", "ipv6", 128, 1n, "2001:db8::1/128"],
    ["2001:db8::/64", "ipv6", 64, 2n ** 64n, ""],
  ])("%s is %s, of length %p, with %p addresses", (value, family, length, size, host) => {
    expect([familyOf(value), lengthOf(value), sizeOf(value)]).toEqual([family, length, size]);
    if (host !== "") expect(hostPrefix(value)).toBe(host);
  });

  test.each<[a: string, b: string, bits: number, equal: boolean]>([
    ["10.1.0.0/24", "10.1.0.9", 24, true],
    ["10.1.0.0/24", "10.1.1.0/24", 23, true],
    ["10.1.0.0/24", "10.1.1.0/24", 24, false],
    ["0.0.0.0/0", "255.0.0.1", 0, true],
    // The same number in another family is another prefix.
    ["0.0.0.0/0", "::/0", 0, false],
    ["0.0.0.1", "::1", 32, false],
    ["2001:db8::/64", "2001:db8::5", 64, true],
  ])("the ancestors of %s and %s at /%p are equal: %p", (a, b, bits, equal) => {
    expect(ancestorKey(a, bits) === ancestorKey(b, bits)).toBe(equal);
  });
});

describe("properties", () => {
  const ipv4 = fc.ipV4();
  const ipv6 = fc.ipV6();
  const address = fc.oneof(ipv4, ipv6);
  const prefix = fc.oneof(
    fc.tuple(ipv4, fc.integer({ min: 0, max: 32 })).map(([ip, bits]) => `${ip}/${bits}`),
    fc.tuple(ipv6, fc.integer({ min: 0, max: 128 })).map(([ip, bits]) => `${ip}/${bits}`),
  );

  test("what is parsed is canonical: parsed again it is the same", () => {
    fc.assert(
      fc.property(address, (text) => {
        const canonical = parseAddress(text);
        // Mapped IPv4 addresses alone are left out.
        if (canonical === undefined) return text.toLowerCase().includes("ffff:");
        return parseAddress(canonical) === canonical && canonical === canonical.toLowerCase();
      }),
    );
  });

  test("a prefix contains its first and last address, and none beside them", () => {
    fc.assert(
      fc.property(prefix, (text) => {
        const canonical = parsePrefix(text);
        if (canonical === undefined) return true;
        const size = sizeOf(canonical);
        const first = nthAddress(canonical, 0n);
        expect(canonical).toBe(`${first}/${lengthOf(canonical)}`);
        expect(contains(canonical, first)).toBe(true);
        expect(contains(canonical, nthAddress(canonical, size - 1n))).toBe(true);
        expect(indexIn(canonical, nthAddress(canonical, size - 1n))).toBe(size - 1n);
        return parsePrefix(canonical) === canonical;
      }),
    );
  });

  test("nothing is accepted that the standard library refuses, and nothing makes it throw", () => {
    const alphabet = fc.constantFrom(..."0123456789abcdefF:./%x -");
    fc.assert(
      fc.property(fc.string({ unit: alphabet, maxLength: 24 }), (text) => {
        const parsed = parseAddress(text);
        parsePrefix(text);
        return parsed === undefined || isIPv4(text) || isIPv6(text);
      }),
      { numRuns: 2_000 },
    );
  });

  /** As another program reads it, which shares no code with this one. */
  function readByLibrary(text: string): string | undefined {
    if (!/^[0-9A-Fa-f:.]+$/.test(text)) return undefined;
    try {
      const address = text.includes(":") ? new Address6(text) : new Address4(text);
      const mapped = text.includes(":") && address.bigInt() >> 32n === 0xffffn;
      return mapped ? undefined : address.correctForm();
    } catch {
      return undefined;
    }
  }

  test("what ip-address reads is read the same, and nothing else", () => {
    const group = fc.oneof(
      fc.constantFrom("", "0", "1", "ffff", "00ab", "12345", "192.0.2.1", "010.1.1.1", "1.2.3"),
      fc.integer({ min: 0, max: 0xffff }).map((n) => n.toString(16)),
    );
    const groups = fc.array(group, { maxLength: 9 }).map((list) => list.join(":"));
    const numbers = fc
      .array(fc.integer({ min: 0, max: 300 }), { maxLength: 5 })
      .map((list) => list.join("."));
    fc.assert(
      fc.property(fc.oneof(address, groups, numbers), (text) => {
        expect([text, parseAddress(text)]).toEqual([text, readByLibrary(text)]);
      }),
      { numRuns: 5_000 },
    );
  });

  test("sort keys sort as addresses do; what a prefix contains is a range of them", () => {
    const value = fc.oneof(address, prefix).map((text) => parseAddress(text) ?? parsePrefix(text) ?? "::/0");
    const around = fc.tuple(value, fc.nat(128)).map(([inner, n]) => {
      const [ip = "", most = inner.includes(":") ? 128 : 32] = inner.split("/");
      return [inner, parsePrefix(`${ip}/${n % (Number(most) + 1)}`) ?? "::/0"] as const;
    });
    fc.assert(
      fc.property(fc.oneof(around, fc.tuple(value, value)), ([a, b]) => {
        const [x, y] = [sortKey(a), sortKey(b)];
        expect(x < y ? -1 : Number(x > y)).toBe(Math.sign(compareAddresses(a, b)));
        expect(y <= x && x <= lastKey(b)).toBe(contains(b, a));
        if (contains(b, a)) expect(ancestorKey(a, lengthOf(b))).toBe(y);
      }),
      { numRuns: 2_000 },
    );
  });

  test("the order is total and agrees with containment", () => {
    fc.assert(
      fc.property(prefix, prefix, (a, b) => {
        const [x, y] = [parsePrefix(a), parsePrefix(b)];
        if (x === undefined || y === undefined) return true;
        expect(Math.sign(compareAddresses(x, y))).toBe(-Math.sign(compareAddresses(y, x)) + 0);
        if (x !== y && contains(x, y)) expect(compareAddresses(x, y)).toBeLessThan(0);
        return (compareAddresses(x, y) === 0) === (x === y);
      }),
    );
  });
});
