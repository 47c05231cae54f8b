import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { Deadline } from '../../shared/abort.ts';
import { socketPath } from '../../shared/agent-socket.ts';
import { linkFile, PrivateLink, tokenFile } from '../../shared/private-link.ts';
import type { HostAddress } from '../fleet/host-view.ts';

/**
 * `absent`: no process holds the directory. `busy`: one does that cannot be linked to, because it starts, ends or hangs.
 */
export type Found = { kind: 'absent' } | { kind: 'busy' } | { kind: 'up'; pid: number; address: HostAddress };

const ANSWER_MS = 2_000;

/**
 * Looks for the agent that holds this state directory. What the files say counts only for the process that answers on the
 * directory's socket: the kernel closes that at death, so nothing that a dead agent left is ever believed.
 */
export async function findAgent(stateDir: string): Promise<Found> {
  const pid = await holderOf(socketPath(stateDir));
  if (pid === undefined) return { kind: 'absent' };
  const link = PrivateLink.safeParse(await readJson(linkFile(stateDir)));
  const token = await readFile(tokenFile(stateDir), 'utf8').catch(() => ''); // not yet written
  if (!link.success || link.data.pid !== pid || token === '') return { kind: 'busy' };
  return { kind: 'up', pid, address: { url: link.data.url, token: token.trim() } };
}

/** The process that listens there says its pid in a first line; 0 for one that does not. Undefined where nobody listens. */
async function holderOf(path: string): Promise<number | undefined> {
  using limit = new Deadline({ ms: ANSWER_MS });
  const socket = connect(path);
  let isConnected = false;
  try {
    await once(socket, 'connect', { signal: limit.signal });
    isConnected = true;
    const [line] = (await once(socket, 'data', { signal: limit.signal })) as [Buffer]; // a socket without an encoding
    return Number(/^pid (\d+)/.exec(line.toString('latin1'))?.[1] ?? 0);
  } catch {
    return isConnected || limit.isExpired ? 0 : undefined;
  } finally {
    socket.on('error', () => undefined); // nobody needs it any more
    socket.destroy();
  }
}

async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // not there, or not whole: no link
  }
}
