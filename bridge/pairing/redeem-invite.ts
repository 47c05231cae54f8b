import { Deadline } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { fetchBody } from '../../shared/http-client.ts';
import type { Invite } from '../../shared/invite.ts';
import { SERVER_NAME } from '../../shared/limits.ts';
import { PAIR_PATH, PairAnswer } from '../../shared/protocol.ts';
import { parseError, parseJson, textOf } from '../fleet/link-errors.ts';
import { isBareInPublic } from './bare-link.ts';
import { pinnedCertificate } from './pinned-certificate.ts';

/** What a laptop has after pairing: all that a host entry needs but its name. */
export type Paired = PairAnswer & { url: string; certificate: string | undefined };

const CONNECT_MS = 5_000;
const ANSWER_MS = 10_000;

/**
 * Exchanges the code of an invite for a token of this laptop's own, at the first of its addresses that answers. Fails with
 * AGENT_UNREACHABLE that names them all, or with what the agent said.
 */
export async function redeemInvite(
  invite: Invite,
  { name, signal }: { name: string; signal: AbortSignal },
): Promise<Paired> {
  const failures: string[] = [];
  for (const address of invite.addresses) {
    try {
      return await redeemAt(address, { invite, name, signal });
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof AppError && error.code !== 'AGENT_UNREACHABLE') throw error;
      failures.push(error instanceof AppError ? error.message : `${address}: ${textOf(error)}`);
    }
  }
  throw new AppError(
    'AGENT_UNREACHABLE',
    `No agent answers at any address of the invite (${failures.join('; ')}). Check that gantry-agent runs there, that a ` +
      'firewall lets the port through, and that this machine is in the same network.',
  );
}

async function redeemAt(
  address: string,
  { invite, name, signal }: { invite: Invite; name: string; signal: AbortSignal },
): Promise<Paired> {
  const { fingerprint, code } = invite;
  const url = `${fingerprint === undefined ? 'ws' : 'wss'}://${address}`;
  if (isBareInPublic(url)) {
    throw new AppError(
      'INVALID_ARGUMENT',
      `${address} is a public address, and this agent does not encrypt. Remove \`tls: off\` there.`,
    );
  }
  const ca = fingerprint === undefined ? undefined : await certificateAt(address, { fingerprint, signal });
  const answer = await fetchBody(`${url.replace(/^ws/, 'http')}${PAIR_PATH}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ code, name }),
    maxBytes: 16 * 1024,
    deadlineMs: ANSWER_MS,
    signal,
    ...(ca !== undefined && { tls: { ca, servername: SERVER_NAME } }),
  });
  const paired = PairAnswer.safeParse(answer.status === 200 ? parseJson(answer.body.toString('utf8')) : undefined);
  if (paired.success) return { ...paired.data, url, certificate: ca };
  const said = parseError(answer.body);
  if (said !== undefined) throw said;
  throw new AppError(
    'AGENT_UNREACHABLE',
    `${address}: it answered HTTP ${answer.status}, which is not what a gantry-agent says`,
  );
}

async function certificateAt(
  address: string,
  { fingerprint, signal }: { fingerprint: string; signal: AbortSignal },
): Promise<string> {
  const { hostname, port } = new URL(`https://${address}`);
  using patience = new Deadline({ ms: CONNECT_MS, signal });
  const place = { host: hostname.replace(/^\[(.*)\]$/, '$1'), port: Number(port || 443) };
  return await pinnedCertificate(place, { fingerprint, signal: patience.signal });
}
