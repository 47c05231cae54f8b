import { hostname, networkInterfaces } from 'node:os';
import { isTailnet, reachOf, withPort } from '../shared/addresses.ts';
import { formatInvite } from '../shared/invite.ts';
import type { HostResult, Role } from '../shared/protocol.ts';
import type { AgentConfig } from './config.ts';

type Interfaces = ReturnType<typeof networkInterfaces>;
type Listening = Pick<AgentConfig, 'tls' | 'names'> & { listen: { host: string; port: number } };

/** `address:port` under which others reach this agent, the likeliest first; names that were configured before addresses. */
export function addressesOf({ listen, names }: Listening, interfaces: Interfaces = networkInterfaces()): string[] {
  const own = listen.host === '0.0.0.0' || listen.host === '::' ? outside(listen.host, interfaces) : [listen.host];
  const named = reachOf(listen.host) === 'loopback' ? [] : names;
  return [...new Set([...named, ...own])].map((address) => withPort(address, listen.port));
}

/** Who can reach the port, in a sentence for the log and for `status`. */
export function reachText(agent: Listening, interfaces: Interfaces = networkInterfaces()): string {
  const { listen, tls } = agent;
  if (reachOf(listen.host) === 'loopback') return 'this machine only';
  const at = addressesOf(agent, interfaces).join(', ') || withPort(listen.host, listen.port);
  if (tls) return `whoever reaches ${at}; with TLS, and nothing without a token`;
  const how = isTailnet(listen.host) ? 'encrypted by the tailnet alone' : 'NOT encrypted';
  return `whoever reaches ${at}; ${how} (tls: off), and nothing without a token`;
}

/** An invite with a new code, as the commands of this host get it. */
export function inviteOf(
  { code, expiresInMs }: { code: string; expiresInMs: number },
  { role, certificate, ...agent }: Listening & { role: Role; certificate: { fingerprint: string } | undefined },
): HostResult<'invite.create'> {
  const addresses = addressesOf(agent);
  const isLoopbackOnly = reachOf(agent.listen.host) === 'loopback';
  const line = formatInvite({ addresses, fingerprint: certificate?.fingerprint, code, name: hostname().split('.')[0] });
  return { line, addresses, isLoopbackOnly, isEncrypted: agent.tls, role, expiresInMs };
}

/** Addresses of this machine for others; of IPv6 none that is valid on one link only. */
function outside(host: string, interfaces: Interfaces): string[] {
  const found = Object.values(interfaces)
    .flatMap((list) => list ?? [])
    .filter(
      ({ internal, family, address }) => !internal && (host === '::' || family === 'IPv4') && !isLinkLocal(address),
    )
    .map(({ address }) => address);
  // A laptop of the same network is likelier than one of the same tailnet, and a private address than one of the internet.
  return found.sort((a, b) => rank(a) - rank(b));
}

function rank(address: string): number {
  return (address.includes(':') ? 4 : 0) + (reachOf(address) === 'public' ? 2 : 0) + (isTailnet(address) ? 1 : 0);
}

function isLinkLocal(address: string): boolean {
  return /^(fe80:|169\.254\.)/i.test(address);
}
