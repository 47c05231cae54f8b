import { BlockList, isIP } from 'node:net';

/** What kind of network an address belongs to: what may cross it unencrypted depends on that. */
export type Reach = 'loopback' | 'private' | 'public';

const LOOPBACK = blockList(['127.0.0.0/8', '::1/128']);
/** RFC 1918, unique local addresses, and the range that carriers and Tailscale share. */
const PRIVATE = blockList(['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', 'fc00::/7']);
/** Addresses of WireGuard tunnels that Tailscale makes: traffic there is encrypted already. */
const TAILNET = blockList(['100.64.0.0/10', 'fd7a:115c:a1e0::/48']);

/** Of an IP address. All addresses of a machine (0.0.0.0, ::) may be public ones. */
export function reachOf(address: string): Reach {
  const family = familyOf(address);
  if (LOOPBACK.check(address, family)) return 'loopback';
  return PRIVATE.check(address, family) ? 'private' : 'public';
}

export function isTailnet(address: string): boolean {
  return TAILNET.check(address, familyOf(address));
}

/** As it stands in a URL or a Host header. */
export function withPort(address: string, port: number): string {
  return isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}

function familyOf(address: string): 'ipv4' | 'ipv6' {
  return isIP(address) === 6 ? 'ipv6' : 'ipv4';
}

function blockList(subnets: readonly string[]): BlockList {
  const list = new BlockList();
  for (const subnet of subnets) {
    const [address = '', prefix] = subnet.split('/');
    list.addSubnet(address, Number(prefix), familyOf(address));
  }
  return list;
}
