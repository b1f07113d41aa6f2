/** Rulesets of others, of the size that large clusters have. */

/** As kube-proxy writes it: a map entry, two chains and their rules for each Service. */
export function kubeProxyRuleset(services: number): string {
  const table = "ip kube-proxy";
  return `${[
    `add table ${table}`,
    `add map ${table} service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }`,
    `add chain ${table} services`,
    `add chain ${table} nat-prerouting { type nat hook prerouting priority -100; }`,
    `add rule ${table} nat-prerouting jump services`,
    `add rule ${table} services ip daddr . meta l4proto . th dport vmap @service-ips`,
    ...Array.from({ length: services }, (_, n) => kubeProxyService(n)),
  ].join("\n")}\n`;
}

/** The lines for one more Service, or for one that has other endpoints if it is there. */
export function kubeProxyService(n: number, endpoint = "10.244.200.2"): string {
  const table = "ip kube-proxy";
  const address = `10.${96 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}`;
  const name = `${n.toString(16).padStart(8, "0")}-ns${n}/svc${n}/tcp/p80`;
  const [service, to] = [`service-${name}`, `endpoint-${name}__${endpoint}/8080`];
  return [
    `add chain ${table} ${service}`,
    `add chain ${table} ${to}`,
    `flush chain ${table} ${service}`,
    `add rule ${table} ${to} ip saddr ${endpoint} drop`,
    `add rule ${table} ${to} meta l4proto tcp dnat to ${endpoint}:8080`,
    `add rule ${table} ${service} ip daddr ${address} tcp dport 80 ip saddr != 10.244.0.0/16 drop`,
    `add rule ${table} ${service} counter goto ${to}`,
    `add element ${table} service-ips { ${address} . tcp . 80 : goto ${service} }`,
  ].join("\n");
}

/** As of a tool that keeps lists of addresses: /30s in two interval sets, none beside another. */
export function foreignSets(elements: number): string {
  const prefix = (n: number) => `${11 + (n >> 22)}.${(n >> 14) & 255}.${(n >> 6) & 255}.${(n << 2) & 255}/30`;
  const half = (from: number) =>
    Array.from({ length: elements / 2 }, (_, n) => prefix(from + 2 * n)).join(", ");
  return `table inet others {
    set first { type ipv4_addr; flags interval; elements = { ${half(0)} }; }
    set second { type ipv4_addr; flags interval; elements = { ${half(1)} }; }
  }\n`;
}
