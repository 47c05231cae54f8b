import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ServerCertificate } from '../../agent/certificate.ts';
import { certificateOf } from '../../agent/certificate.ts';
import { fetchBody } from '../../shared/http-client.ts';
import { SERVER_NAME } from '../../shared/limits.ts';
import { createLog } from '../../shared/log.ts';

test('a request goes to the pinned certificate and to no other: of a token nobody else sees a byte', async () => {
  const [own, other] = [await newCertificate(), await newCertificate()];
  const seen: (string | undefined)[] = [];
  const server = createServer({ key: own.key, cert: own.cert }, ({ headers }, response) => {
    seen.push(headers.authorization);
    response.end('ok');
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo; // it listens on TCP
  const ask = async (ca: string) =>
    await fetchBody(`https://127.0.0.1:${port}/`, {
      ...{ tls: { ca, servername: SERVER_NAME }, headers: { authorization: 'Bearer secret' } },
      ...{ signal: new AbortController().signal, deadlineMs: 60_000, maxBytes: 100 },
    });
  await expect(ask(other.cert)).rejects.toThrow();
  expect(seen).toEqual([]);
  expect((await ask(own.cert)).status).toBe(200);
  expect(seen).toEqual(['Bearer secret']);
  server.close();
});

async function newCertificate(): Promise<ServerCertificate> {
  const directory = await mkdtemp(join(tmpdir(), 'gantry-pin-'));
  try {
    return await certificateOf(directory, createLog({ name: 'test', to: 'stderr', level: 'silent' }));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
