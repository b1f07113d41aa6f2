import { describe, expect, test } from "bun:test";
import { evaluate } from "../fixtures/expression.ts";

describe("subnet", () => {
  const cases: [source: string, expected: string][] = [
    [`cidr("10.0.0.0/8").subnet(16, 0)`, "10.0.0.0/16"],
    [`cidr("10.0.0.0/8").subnet(16, 255)`, "10.255.0.0/16"],
    [`cidr("10.0.0.5/24").subnet(28, 1)`, "10.0.0.16/28"],
    [`cidr("10.0.0.0/24").subnet(32, 255)`, "10.0.0.255/32"],
    [`cidr("10.0.0.0/24").subnet(24, 0)`, "10.0.0.0/24"],
    [`cidr("0.0.0.0/0").subnet(32, 4294967295)`, "255.255.255.255/32"],
    [`cidr("2001:db8:1:2:3::5/64").subnet(80, 65535)`, "2001:db8:1:2:ffff::/80"],
    [`cidr("2001:db8::/32").subnet(128, 1)`, "2001:db8::1/128"],
    [`cidr("::/0").subnet(64, 9223372036854775807)`, "7fff:ffff:ffff:ffff::/64"],
    [`cidr("fd00::/8").subnet(48, 1).subnet(64, 2)`, "fd00:0:1:2::/64"],
  ];
  test.each(cases)("%s", (source, expected) => expect(evaluate(source)).toEqual([expected]));
});

describe("CEL's own, and the IP and CIDR functions of Kubernetes", () => {
  const holds = [
    `ip("127.0.0.1").family() == 4`,
    `ip("::1").family() == 6`,
    `isIP("10.1.2.3") && isIP("2001:db8::1") && isIP("::1.2.3.4")`,
    `!isIP("10.1.2.256") && !isIP("10.1.2") && !isIP("010.1.2.3") && !isIP(":::1") && !isIP("") && !isIP("10.1.2.3/32")`,
    `!isIP("::ffff:1.2.3.4") && !isIP("fe80::1%eth0")`,
    `ip.isCanonical("127.0.0.1") && ip.isCanonical("2001:db8::abcd") && ip.isCanonical("1:2:3:4:5:6:7:0")`,
    `!ip.isCanonical("2001:DB8::ABCD") && !ip.isCanonical("2001:db8::0:0:0:abcd") && !ip.isCanonical("1:2:3:4:5:6:7::")`,
    `string(ip("2001:DB8:0:0:1:0:0:1")) == "2001:db8::1:0:0:1" && string(ip("10.1.2.3")) == "10.1.2.3"`,
    `ip("2001:DB8::1") == ip("2001:db8:0::1") && ip("10.0.0.1") != ip("10.0.0.2")`,
    `isCIDR("10.0.0.0/8") && isCIDR("10.0.0.5/24") && isCIDR("::/0") && isCIDR("::1/128")`,
    `!isCIDR("10.0.0.0/33") && !isCIDR("::/129") && !isCIDR("10.0.0.0/08") && !isCIDR("10.0.0.0") && !isCIDR("10.0.0/8")`,
    `!isCIDR("::ffff:10.0.0.0/104") && !isCIDR("fe80::1%eth0/64") && !isCIDR("10.0.0.0/") && !isCIDR(" 10.0.0.0/8")`,
    `string(cidr("10.0.0.5/24")) == "10.0.0.5/24" && string(cidr("2001:DB8:0::5/64")) == "2001:db8::5/64"`,
    `cidr("10.0.0.5/24").masked() == cidr("10.0.0.0/24") && cidr("10.0.0.5/24") != cidr("10.0.0.0/24")`,
    `cidr("2001:db8:1::/32").masked() == cidr("2001:db8::/32")`,
    `cidr("10.0.0.5/24").ip() == ip("10.0.0.5") && cidr("::1/128").ip() == ip("::1")`,
    `cidr("10.0.0.0/16").prefixLength() == 16 && cidr("::1/128").prefixLength() == 128`,
    `cidr("10.0.0.0/24").containsIP(ip("10.0.0.255")) && !cidr("10.0.0.0/24").containsIP(ip("10.0.1.0"))`,
    `cidr("2001:db8::/32").containsIP("2001:db8::1") && !cidr("2001:db8::/32").containsIP("2001:dc8::1")`,
    `!cidr("0.0.0.0/0").containsIP("::1") && !cidr("::/0").containsIP("10.0.0.1")`,
    `cidr("10.0.0.0/16").containsCIDR(cidr("10.0.10.0/24")) && cidr("10.0.0.0/16").containsCIDR("10.0.0.0/16")`,
    `!cidr("10.0.0.0/24").containsCIDR("10.0.0.0/23") && !cidr("10.0.1.0/24").containsCIDR("10.0.2.0/24")`,
    `cidr("2001:db8::/32").containsCIDR("2001:db8:5::/48") && !cidr("::/0").containsCIDR("10.0.0.0/8")`,
    `cidr("10.0.0.0/24") in [cidr("10.0.0.0/24")] && !(ip("::1") in [ip("::2")])`,
    `interfaces["eth0"].exists(ip, ip.ip().isGlobalUnicast())`,
    // For the Go implementation node is a map, read by key or by field.
    `node["name"] == "worker-7" && node["labels"]["zone"] == "b" && node.labels.zone == "b"`,
    `has(node.labels) && has(node.labels.zone) && "zone" in node.labels && !("zone" in node.annotations)`,
    `"labels" in node && "name" in node && "annotations" in node && !("zone" in node)`,
    `interfaces["eth0"].all(p, p.prefixLength() < 65) && interfaces["eth0"].exists_one(p, p.prefixLength() == 24)`,
    `size(interfaces["eth0"]) == 3 && interfaces.size() == 4 && node.labels.size() == 5`,
    `node.name.matches("^worker-[0-9]+$") && node.name.endsWith("7") && node.name.contains("ork")`,
    `string(7) == "7" && int("-7") == -7 && "worker-" + string(7) == node.name`,
    `7 / 2 == 3 && 7 % 2 == 1 && 0x10 == 16`,
    `[1, 2] + [3] == [1, 2, 3] && [1, 2].map(n, n > 1, n * 2) == [4]`,
    `cel.bind(found, interfaces["eth1"], found.size() == 2)`,
    `type(cidr("::/0")) == type(interfaces["eth0"][0]) && type(cidr("::/0")) != type(ip("::"))`,
  ];
  test.each(holds)("%s", (source) => expect(evaluate(`${source} ? [cidr("::/0")] : []`)).toEqual(["::/0"]));

  // As Go's netip.Addr answers.
  const kinds: [address: string, kinds: string][] = [
    ["0.0.0.0", "isUnspecified"],
    ["0.0.0.1", "isGlobalUnicast"],
    ["10.1.2.3", "isGlobalUnicast"],
    ["127.0.0.1", "isLoopback"],
    ["127.255.255.254", "isLoopback"],
    ["128.0.0.1", "isGlobalUnicast"],
    ["169.254.0.1", "isLinkLocalUnicast"],
    ["169.255.0.1", "isGlobalUnicast"],
    ["224.0.0.255", "isLinkLocalMulticast"],
    ["224.0.1.1", ""],
    ["239.1.1.1", ""],
    ["240.0.0.1", "isGlobalUnicast"],
    ["255.255.255.255", ""],
    ["::", "isUnspecified"],
    ["::1", "isLoopback"],
    ["::2", "isGlobalUnicast"],
    ["2001:db8::1", "isGlobalUnicast"],
    ["fc00::1", "isGlobalUnicast"],
    ["fe80::1", "isLinkLocalUnicast"],
    ["febf::1", "isLinkLocalUnicast"],
    ["fec0::1", "isGlobalUnicast"],
    ["ff00::1", ""],
    ["ff01::1", ""],
    ["ff02::1", "isLinkLocalMulticast"],
    ["ff12::1", "isLinkLocalMulticast"],
    ["ff05::2", ""],
  ];
  const predicates = [
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
  ];
  test.each(kinds)("%s: %s", (address, expected) => {
    const holding = predicates.filter(
      (name) => evaluate(`ip("${address}").${name}() ? [cidr("::/0")] : []`).length > 0,
    );
    expect(holding.join()).toBe(expected);
  });
});
