import { z } from 'zod';
import { AppError, errorCode, isErrorCode } from '../../shared/errors.ts';
import type { HostConfig } from './host-view.ts';

/** No connection, with the address and what is done about it. */
export function unreachable(host: HostConfig, why: string): AppError {
  return new AppError(
    'AGENT_UNREACHABLE',
    `No connection to ${host.name} at ${host.url}: ${why}. It is tried again by itself; check that gantry-agent runs there.`,
  );
}

/** One agent under two names: it works through the other. */
export function sameAgent({ name, url }: HostConfig, other: string): AppError {
  return new AppError(
    'INVALID_ARGUMENT',
    `${name} at ${url} is the same agent as ${other}, and its slots would count twice: it is used as ${other}, and as ${name} ` +
      `only while ${other} is not connected. Forget one of the two names: \`gantry remove ${name}\`.`,
  );
}

/** The connection did not come about: a matter of the network, or of who answers there. */
export function notConnected(host: HostConfig, error: unknown): AppError {
  const code = errorCode(error) ?? '';
  return isCertificateError(code) ? wrongCertificate(host, code) : unreachable(host, textOf(error));
}

/** Of TLS as Node names them: whoever answers shows no certificate that is trusted for this host. */
function isCertificateError(code: string): boolean {
  return /^(ERR_TLS_CERT|(DEPTH_ZERO_)?SELF_SIGNED|UNABLE_TO_(GET|VERIFY|DECRYPT)|INVALID_(CA|PURPOSE))|CERT_/.test(
    code,
  );
}

/** The hand-shake fails before anything is sent. */
function wrongCertificate(host: HostConfig, code: string): AppError {
  const { name, url, tls } = host;
  if (/EXPIRED|NOT_YET_VALID/.test(code)) {
    const message = `The certificate of ${name} at ${url} is not valid today (${code}); nothing was sent. Check the clocks of both machines.`;
    return new AppError('AUTH_FAILED', message);
  }
  if (tls === undefined) {
    return new AppError(
      'AUTH_FAILED',
      `No authority vouches for the certificate of ${name} at ${url} (${code}), and none is pinned; nothing was sent. ` +
        `Run \`gantry-agent invite\` there, and here \`gantry remove ${name}\` and \`gantry add\` with the new line.`,
    );
  }
  return new AppError(
    'AUTH_FAILED',
    `Whoever answers at ${url} shows another certificate than ${name} had when it was added (${code}); nothing was sent. ` +
      'Either its agent was set up anew, or another machine has that address, or somebody is in between. If it was set up ' +
      `anew: run \`gantry-agent invite\` there, and here \`gantry remove ${name}\` and \`gantry add\` with the new line.`,
  );
}

/** An HTTP answer in place of the upgrade. */
export function refused(host: HostConfig, status: number): AppError {
  if (status === 401 || status === 403) return authFailed(host);
  if (status === 429) return new AppError('RATE_LIMITED', `${host.name} refused the connection: too many tries.`);
  return unreachable(host, `it answered HTTP ${status} instead of opening a link`);
}

/** The token is not known to the agent (any more). It is never part of the message. */
export function authFailed(host: HostConfig): AppError {
  return new AppError(
    'AUTH_FAILED',
    `${host.name} refused the token of this laptop: it was revoked, or never was. Run \`gantry-agent invite\` there, and here \`gantry remove ${host.name}\` and \`gantry add\` with the new line.`,
  );
}

const ErrorBody = z.object({ error: z.object({ code: z.string(), message: z.string().max(2_000) }) });

/** The error that the agent itself put into a body, if it did. */
export function parseError(body: Buffer): AppError | undefined {
  const parsed = ErrorBody.safeParse(parseJson(body.toString('utf8')));
  if (!parsed.success || !isErrorCode(parsed.data.error.code)) return undefined;
  return new AppError(parsed.data.error.code, parsed.data.error.message);
}

/** Undefined for what is not JSON: it matches no schema, and is treated as an invalid frame or answer. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // as promised above
  }
}

/** What a foreign error says, also the empty ones of failed connections. */
export function textOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof AggregateError && error.message === '') return error.errors.map(textOf).join('; ');
  return error.message === '' && 'code' in error ? String(error.code) : error.message;
}
