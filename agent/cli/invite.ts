import type { HostResult, Role } from '../../shared/protocol.ts';
import type { HostClient } from './host-client.ts';
import type { Screen } from './screen.ts';

type Invited = HostResult<'invite.create'>;

/**
 * Prints the line that lets one laptop in: on stdout the line alone, the talk beside it. An agent that nobody else reaches
 * gives its line all the same, for this machine and for a tunnel, and says how to open it.
 */
export async function invite(
  client: Pick<HostClient, 'ask'>,
  o: Pick<Screen, 'write'> & { role: Role; isJson: boolean; say: (text: string) => void },
): Promise<void> {
  const invited = await client.ask('invite.create', { role: o.role });
  if (o.isJson) return o.write(`${JSON.stringify({ schema: 1, ...invited }, undefined, 2)}\n`);
  o.write(`gantry add '${invited.line}'\n`);
  for (const line of remarks(invited)) o.say(`${line}\n`);
}

export function remarks({ isLoopbackOnly, isEncrypted, addresses, role, expiresInMs }: Invited): string[] {
  const [first = '127.0.0.1:7801'] = addresses;
  const minutes = Math.round(expiresInMs / 60_000);
  const does = role === 'viewer' ? 'it may look and change nothing' : 'it may do all that a laptop can';
  const once = `Run this on the laptop within ${minutes} minutes. It works once; ${does}.`;
  if (isLoopbackOnly) {
    const port = first.split(':').at(-1) ?? '7801';
    return [
      once,
      `This agent listens on ${first} only: the line works on this machine, and on a laptop while a tunnel runs there:`,
      `    ssh -N -L ${port}:${first} THIS-HOST`,
      'To open it to your network (with TLS, and nothing without a token):',
      '    gantry-agent listen network',
    ];
  }
  return isEncrypted
    ? [once]
    : [once, `Traffic to ${first} is not encrypted (tls: off): only the network keeps the code and the token secret.`];
}
