import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errorCode } from '../shared/errors.ts';
import { ConfigError } from '../shared/config-file.ts';
import { makeDirectory, writeDurable } from '../shared/durable-file.ts';
import { SERVER_NAME } from '../shared/limits.ts';
import type { Log } from '../shared/log.ts';

/** What a TLS server needs, and what an invite says of it. */
export type ServerCertificate = { cert: string; key: string; fingerprint: string };

const FILE = 'certificate.pem';
const YEARS = 10;

/**
 * The certificate of this agent, made at the first start that needs one: key and certificate in one file, 0600, so that
 * they are there together or not at all. It is never renewed or replaced here: laptops have pinned it, and another one
 * looks to them like somebody else. One that cannot be used is a ConfigError that says what to do.
 */
export async function certificateOf(stateDir: string, log: Log): Promise<ServerCertificate> {
  const path = join(stateDir, FILE);
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  });
  if (text !== undefined) return parsed(text, path);
  const { generate } = await import('selfsigned'); // needed once in the life of a host
  const notBeforeDate = new Date(Date.now() - 24 * 3_600_000); // the clock of a laptop may be behind
  const notAfterDate = new Date(notBeforeDate);
  notAfterDate.setFullYear(notAfterDate.getFullYear() + YEARS);
  const made = await generate([{ name: 'commonName', value: SERVER_NAME }], {
    keyType: 'ec',
    curve: 'P-256',
    algorithm: 'sha256',
    notBeforeDate,
    notAfterDate,
    extensions: [{ name: 'subjectAltName', altNames: [{ type: 2, value: SERVER_NAME }] }],
  });
  await makeDirectory(stateDir, { mode: 0o700 });
  await writeDurable(path, `${made.private.trim()}\n${made.cert.trim()}\n`);
  const certificate = parsed(`${made.private}\n${made.cert}`, path);
  log.info({ event: 'certificate-made', fingerprint: certificate.fingerprint, validUntil: notAfterDate.toISOString() });
  return certificate;
}

/** The certificate that is there, for commands that only show it. */
export async function fingerprintIn(stateDir: string): Promise<string | undefined> {
  const path = join(stateDir, FILE);
  const text = await readFile(path, 'utf8').catch(() => undefined); // absent, or not ours to read
  return text === undefined ? undefined : parsed(text, path).fingerprint;
}

function parsed(text: string, path: string): ServerCertificate {
  const [key = ''] = /-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]+-----END [A-Z ]*PRIVATE KEY-----/.exec(text) ?? [];
  const [cert = ''] = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(text) ?? [];
  const unusable = (why: string): ConfigError =>
    new ConfigError([
      `${path}: ${why}. Laptops know this host by it, so it is not replaced by itself: put it back from a backup, or ` +
        'delete it and pair every laptop anew with `gantry-agent invite`.',
    ]);
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(cert);
    if (!certificate.checkPrivateKey(createPrivateKey(key))) throw unusable('its key does not belong to it');
  } catch (error) {
    throw error instanceof ConfigError ? error : unusable('the certificate of this agent cannot be read');
  }
  if (Date.parse(certificate.validTo) < Date.now()) throw unusable(`it expired on ${certificate.validTo}`);
  return { cert: `${cert}\n`, key: `${key}\n`, fingerprint: fingerprintOf(certificate) };
}

function fingerprintOf({ fingerprint256 }: X509Certificate): string {
  return `sha256:${Buffer.from(fingerprint256.replaceAll(':', ''), 'hex').toString('base64url')}`;
}
