import { X509Certificate } from 'node:crypto';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { certificateOf } from '../../agent/certificate.ts';
import { addressesOf, reachText } from '../../agent/reach.ts';
import { createLog } from '../../shared/log.ts';

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-cert-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

test('made once, ECDSA P-256, ten years, key and certificate in one file of 0600', async () => {
  const made = await certificateOf(dir, log);
  const again = await certificateOf(dir, log);
  expect(again).toEqual(made);
  expect((await stat(join(dir, 'certificate.pem'))).mode & 0o777).toBe(0o600);
  const certificate = new X509Certificate(made.cert);
  expect(certificate.publicKey.asymmetricKeyDetails).toMatchObject({ namedCurve: 'prime256v1' });
  expect(Date.parse(certificate.validTo) - Date.now()).toBeGreaterThan(9.9 * 365 * 86_400_000);
  expect(certificate.subjectAltName).toBe('DNS:gantry-agent');
});

test('never replaced by itself: a damaged, foreign or half file is a problem with its way out, and stays as it is', async () => {
  const { cert, key } = await certificateOf(dir, log);
  const other = await certificateOf(await mkdtemp(join(dir, 'other-')), log);
  const path = join(dir, 'certificate.pem');
  for (const text of ['', 'nonsense', cert, key, `${other.key}${cert}`]) {
    await chmod(path, 0o600);
    await writeFile(path, text);
    await expect(certificateOf(dir, log)).rejects.toThrow(
      /certificate\.pem: .*pair every laptop anew with `gantry-agent invite`/,
    );
    expect(await readFile(path, 'utf8')).toBe(text);
  }
});

test('one that ran out is a problem and no certificate', async () => {
  await certificateOf(dir, log);
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 10.1 * 365 * 86_400_000 });
  try {
    await expect(certificateOf(dir, log)).rejects.toThrow(/certificate\.pem: it expired on .*pair every laptop anew/);
  } finally {
    vi.useRealTimers();
  }
});

const INTERFACES = {
  lo: [{ address: '127.0.0.1', family: 'IPv4', internal: true }],
  eth0: [
    { address: '10.0.0.5', family: 'IPv4', internal: false },
    { address: 'fe80::1', family: 'IPv6', internal: false },
    { address: '2001:db8::5', family: 'IPv6', internal: false },
  ],
  tailscale0: [{ address: '100.64.0.5', family: 'IPv4', internal: false }],
  wan: [{ address: '203.0.113.5', family: 'IPv4', internal: false }],
} as unknown as Parameters<typeof addressesOf>[1]; // of an interface nothing else is asked

test('S1: an invite and the log name who reaches it', () => {
  const at = (host: string, tls = true) => ({ listen: { host, port: 7801 }, names: ['gpubox.lan'], tls });
  expect(addressesOf(at('0.0.0.0'), INTERFACES)).toEqual(
    ['gpubox.lan', '10.0.0.5', '100.64.0.5', '203.0.113.5'].map((each) => `${each}:7801`),
  );
  expect(addressesOf(at('::'), INTERFACES)).toContain('[2001:db8::5]:7801');
  expect(addressesOf(at('127.0.0.1'), INTERFACES)).toEqual(['127.0.0.1:7801']);
  expect(reachText(at('127.0.0.1'), INTERFACES)).toBe('this machine only');
  expect(reachText(at('10.0.0.5'), INTERFACES)).toBe(
    'whoever reaches gpubox.lan:7801, 10.0.0.5:7801; with TLS, and nothing without a token',
  );
  expect(reachText(at('10.0.0.5', false), INTERFACES)).toContain('NOT encrypted (tls: off)');
  expect(reachText(at('100.64.0.5', false), INTERFACES)).toContain('encrypted by the tailnet alone');
});
