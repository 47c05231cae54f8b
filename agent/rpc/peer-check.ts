import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import { hostname, networkInterfaces } from 'node:os';
import type { ErrorCode } from '../../shared/errors.ts';
import { AppError } from '../../shared/errors.ts';
import type { TokenRef } from '../job/session.ts';

/** Why a request is turned away, before anything of it is looked at further. */
export type Refusal = { status: number; code: ErrorCode; message: string; retryAfterS?: number };

/** Looks a token's text up; undefined for unknown, wrong and revoked ones alike. */
export type Authenticate = (text: string) => Promise<TokenRef | undefined>;

/**
 * A browser can be led to this port under any name (DNS rebinding) and sends its page's Origin: the Host header must name
 * this machine, and an Origin, which our own clients never send, must be this server's own.
 */
export function checkAddress(request: IncomingMessage, names: readonly string[]): Refusal | undefined {
  const { host, origin } = request.headers;
  if (host === undefined || !isOwnName(host, names)) {
    const message = 'The Host header does not name this machine. Add the name to `names` in agent.yaml.';
    return { status: 421, code: 'INVALID_ARGUMENT', message };
  }
  const scheme = 'encrypted' in request.socket ? 'https' : 'http';
  if (origin === undefined || origin === `${scheme}://${host}`) return undefined;
  return { status: 403, code: 'INVALID_ARGUMENT', message: 'Requests from web pages of other origins are refused.' };
}

/** The token of the Authorization header, the only place it is read from; undefined for no, wrong and revoked ones. */
export async function findToken(request: IncomingMessage, authenticate: Authenticate): Promise<TokenRef | undefined> {
  const [, text] = /^Bearer ([\x21-\x7e]{1,200})$/i.exec(request.headers.authorization ?? '') ?? [];
  return text === undefined ? undefined : await authenticate(text);
}

/** One text for no, wrong and revoked token: it must not tell them apart. */
export function refusedToken(): AppError {
  return new AppError(
    'AUTH_FAILED',
    'The agent refused the token. Make one on that host with `gantry-agent tokens add NAME` and put it into the configuration here.',
  );
}

function isOwnName(hostHeader: string, names: readonly string[]): boolean {
  const name = hostHeader
    .replace(/:\d+$/, '')
    .replace(/^\[(.*)\]$/, '$1')
    .replace(/\.$/, '')
    .toLowerCase();
  const own = hostname()
    .toLowerCase()
    .replace(/\.local$/, '');
  if (names.some((each) => each.toLowerCase() === name)) return true;
  if (isIP(name) !== 0) return isOwnAddress(name);
  return ['localhost', own, `${own}.local`].includes(name);
}

function isOwnAddress(address: string): boolean {
  if (address.startsWith('127.') || address === '::1') return true;
  return Object.values(networkInterfaces()).some((list) => list?.some((entry) => entry.address === address));
}
