/** Rulesets of others, of the size that large clusters have. */

/** What nft calls a family. */
type Keyword = "ip" | "ip6";

/** As kube-proxy writes it: a map entry, two chains and their rules for each Service. */
export function kubeProxyRuleset(services: number, family: Keyword = "ip"): string {
  const table = `${family} kube-proxy`;
  const type = family === "ip" ? "ipv4_addr" : "ipv6_addr";
  return `${[
    `add table ${table}`,
    `add map ${table} service-ips { type ${type} . inet_proto . inet_service : verdict; }`,
    `add chain ${table} services`,
    `add chain ${table} nat-prerouting { type nat hook prerouting priority -100; }`,
    `add rule ${table} nat-prerouting jump services`,
    `add rule ${table} services ${family} daddr . meta l4proto . th dport vmap @service-ips`,
    ...Array.from({ length: services }, (_, n) => kubeProxyService(n, family)),
  ].join("\n")}\n`;
}

/** The lines for one more Service, or for one that has other endpoints if it is there. */
export function kubeProxyService(
  n: number,
  family: Keyword = "ip",
  endpoint = family === "ip" ? "10.244.200.2" : "fd00:10:244:200::2",
): string {
  const table = `${family} kube-proxy`;
  const [pods, address, target] =
    family === "ip"
      ? ["10.244.0.0/16", `10.${96 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}`, endpoint]
      : ["fd00:10:244::/48", `fd00:96::${n.toString(16)}`, `[${endpoint}]`];
  const name = `${n.toString(16).padStart(8, "0")}-ns${n}/svc${n}/tcp/p80`;
  const [service, to] = [`service-${name}`, `endpoint-${name}__${n}/8080`];
  return [
    `add chain ${table} ${service}`,
    `add chain ${table} ${to}`,
    `flush chain ${table} ${service}`,
    `add rule ${table} ${to} ${family} saddr ${endpoint} drop`,
    `add rule ${table} ${to} meta l4proto tcp dnat to ${target}:8080`,
    `add rule ${table} ${service} ${family} daddr ${address} tcp dport 80 ${family} saddr != ${pods} drop`,
    `add rule ${table} ${service} counter goto ${to}`,
    `add element ${table} service-ips { ${address} . tcp . 80 : goto ${service} }`,
  ].join("\n");
}

/** As of a tool that keeps lists of addresses: an interval set of each family, no element of which touches another. */
export function foreignSets(elements: number): string {
  const ipv4 = (n: number) => `${11 + (n >> 21)}.${(n >> 13) & 255}.${(n >> 5) & 255}.${(n << 3) & 255}/30`;
  const ipv6 = (n: number) => `2a01:${(n >> 12).toString(16)}:${(n & 4095).toString(16)}::/62`;
  const half = (prefix: (n: number) => string) =>
    Array.from({ length: elements / 2 }, (_, n) => prefix(n)).join(", ");
  return `table inet others {
    set first { type ipv4_addr; flags interval; elements = { ${half(ipv4)} }; }
    set second { type ipv6_addr; flags interval; elements = { ${half(ipv6)} }; }
  }\n`;
}
