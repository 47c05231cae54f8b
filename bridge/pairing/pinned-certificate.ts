import { createHash, timingSafeEqual, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { connect } from 'node:tls';
import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { SERVER_NAME } from '../../shared/limits.ts';

/**
 * The certificate of whoever answers there, as PEM, if it is the one of the fingerprint. The hand-shake is all that passes:
 * the connection is closed before a byte of ours is written, so that nothing secret can reach somebody else.
 */
export async function pinnedCertificate(
  { host, port }: { host: string; port: number },
  { fingerprint, signal }: { fingerprint: string; signal: AbortSignal },
): Promise<string> {
  const socket = connect({ host, port, servername: SERVER_NAME, rejectUnauthorized: false });
  try {
    await untilAborted(once(socket, 'secureConnect'), signal);
    const certificate = socket.getPeerX509Certificate();
    if (certificate !== undefined && isSame(certificate.raw, fingerprint)) return certificate.toString();
  } finally {
    socket.on('error', () => undefined); // it is over, whatever else it has to say
    socket.destroy();
  }
  throw new AppError(
    'AUTH_FAILED',
    `The agent at ${host}:${port} shows another certificate than the invite names. Either another machine has that address, ` +
      'or its agent was set up anew, or somebody is in between. Nothing was sent. Run `gantry-agent invite` on the host again ' +
      'and compare the addresses.',
  );
}

/** The fingerprint of a certificate that is there as PEM, as invites write it. */
export function fingerprintOf(pem: string): string {
  return `sha256:${digestOf(new X509Certificate(pem).raw).toString('base64url')}`;
}

function isSame(der: Buffer, fingerprint: string): boolean {
  const wanted = Buffer.from(fingerprint.replace(/^sha256:/, ''), 'base64url');
  const shown = digestOf(der);
  return wanted.length === shown.length && timingSafeEqual(wanted, shown);
}

function digestOf(der: Buffer): Buffer {
  return createHash('sha256').update(der).digest();
}
