import { FACTS } from './metric-facts.ts';
import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import type { OutgoingHttpHeaders, Server } from 'node:http';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import sharp from 'sharp';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ROUTES, route } from '../../../agent/http/routes.ts';
import { InputStore } from '../../../agent/job/input-store.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import { AppError } from '../../../shared/errors.ts';
import { fetchBody } from '../../../shared/http-client.ts';
import { createLog } from '../../../shared/log.ts';

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });
const ANNA = { id: 'anna', role: 'operator' as const };
const BERT = { id: 'bert', role: 'operator' as const };
const VERA = { id: 'vera', role: 'viewer' as const };
const jobId = randomUUID();
const png = await sharp({ create: { width: 8, height: 8, channels: 3, background: '#fa0' } })
  .png()
  .toBuffer();
const preview = await sharp(png).jpeg().toBuffer();

let dir: string;
let pictures: PictureProcess;
let server: Server;
let base: string;
let results: ResultStore;
let inputs: InputStore;
let reasons: string[];
let arrived: string[];

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-http-'));
  pictures = new PictureProcess();
  results = await ResultStore.open({ dir: join(dir, 'results'), quotaBytes: 1e9, keptMs: 1e9, pictures, log });
  inputs = await InputStore.open({ dir: join(dir, 'inputs'), quotaBytes: 1e9, pictures, log });
  reasons = [];
  arrived = [];
  const parts = {
    results,
    inputs,
    pace: { bytes: 300_000, withinMs: 300 },
    readiness: () => reasons,
    inputArrived: (tokenId: string, sha256: string) => arrived.push(`${tokenId} ${sha256}`),
    metrics: () => FACTS,
    redeem: () => Promise.reject(new AppError('AUTH_FAILED', 'no')),
  };
  // The listener's part of the work is tested with the whole agent; here the token is the header's word.
  server = createServer((request, response) => {
    const token = [ANNA, BERT, VERA].find(({ id }) => id === request.headers.authorization);
    const authenticate = () => (token ? Promise.resolve(token) : Promise.reject(new AppError('AUTH_FAILED', 'no')));
    route({ request, response, parts }, { token: authenticate, pairing: (redeem) => redeem() }).catch(
      (error: unknown) => {
        const { code } = error instanceof AppError ? error : { code: 'INTERNAL' };
        response.writeHead(code === 'AUTH_FAILED' ? 401 : code === 'JOB_NOT_FOUND' ? 404 : 400, {
          connection: 'close',
        });
        response.end(String(error));
      },
    );
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const address = server.address();
  base = `http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`;
});
afterEach(async () => {
  server.closeAllConnections();
  server.close();
  await once(server, 'close');
  await pictures[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

test('every route but /healthz wants a token, unknown paths included', async () => {
  const paths = [
    '/readyz',
    '/metrics',
    `/v1/inputs/${'0'.repeat(64)}`,
    `/v1/results/${jobId}`,
    `/v1/results/${jobId}/preview`,
  ];
  expect(ROUTES.every(({ path }) => paths.some((each) => path.test(each)))).toBe(true);
  for (const path of [...paths, '/', '/nothing', '/healthz/', '//']) {
    for (const method of ['GET', 'PUT', 'POST', 'DELETE'] as const) {
      expect((await ask(path, { method })).status, `${method} ${path}`).toBe(401);
    }
  }
  expect(await ask('/healthz')).toMatchObject({ status: 200, text: 'ok\n' });
});

test('an unknown path is 404, a wrong method 405', async () => {
  expect((await ask('/v1/nothing', { as: ANNA })).status).toBe(404);
  expect((await ask(`/v1/results/${jobId}`, { as: ANNA, method: 'DELETE' })).status).toBe(405);
});

test('readyz says why not', async () => {
  expect(await ask('/readyz', { as: VERA })).toMatchObject({ status: 200, text: '{"ready":true,"reasons":[]}' });
  reasons = ['The host is draining.'];
  expect(await ask('/readyz', { as: VERA })).toMatchObject({
    status: 503,
    text: '{"ready":false,"reasons":["The host is draining."]}',
  });
});

describe('results', () => {
  let sha256: string;
  beforeEach(async () => {
    ({ sha256 } = await results.put(ANNA.id, jobId, 1, png, preview));
  });

  test('the image as stored, with its hash as ETag', async () => {
    const answer = await ask(`/v1/results/${jobId}`, { as: ANNA });
    expect(answer.status).toBe(200);
    expect(answer.body.equals(png)).toBe(true);
    expect(answer.headers).toMatchObject({
      'content-type': 'image/png',
      'content-length': String(png.length),
      'accept-ranges': 'bytes',
      etag: `"${sha256}"`,
    });
    expect(answer.headers).not.toHaveProperty('access-control-allow-origin');
  });

  test('the preview', async () => {
    const answer = await ask(`/v1/results/${jobId}/preview`, { as: ANNA });
    expect([answer.status, answer.headers['content-type']]).toEqual([200, 'image/jpeg']);
    expect(answer.body.equals(preview)).toBe(true);
  });

  test('the missing rest of a download, unless the file is another one', async () => {
    const rest = await ask(`/v1/results/${jobId}`, {
      as: ANNA,
      headers: { range: 'bytes=10-', 'if-range': `"${sha256}"` },
    });
    expect([rest.status, rest.headers['content-range']]).toEqual([206, `bytes 10-${png.length - 1}/${png.length}`]);
    expect(rest.body.equals(png.subarray(10))).toBe(true);
    const other = await ask(`/v1/results/${jobId}`, {
      as: ANNA,
      headers: { range: 'bytes=10-', 'if-range': '"other"' },
    });
    expect([other.status, other.body.length]).toEqual([200, png.length]);
    const behind = await ask(`/v1/results/${jobId}`, { as: ANNA, headers: { range: `bytes=${png.length}-` } });
    expect([behind.status, behind.headers['content-range']]).toEqual([416, `bytes */${png.length}`]);
  });

  test('HEAD and If-None-Match send no bytes', async () => {
    const head = await ask(`/v1/results/${jobId}`, { as: ANNA, method: 'HEAD' });
    expect([head.status, head.headers['content-length'], head.body.length]).toEqual([200, String(png.length), 0]);
    const known = await ask(`/v1/results/${jobId}`, { as: ANNA, headers: { 'if-none-match': `"${sha256}"` } });
    expect([known.status, known.body.length]).toEqual([304, 0]);
  });

  test('what is unknown, foreign, malformed or just deleted answers the same bytes', async () => {
    const unknown = await ask(`/v1/results/${randomUUID()}`, { as: BERT });
    const foreign = await ask(`/v1/results/${jobId}`, { as: BERT });
    const preview = await ask(`/v1/results/${jobId}/preview`, { as: BERT });
    const malformed = await ask('/v1/results/..%2f..%2ftokens.json', { as: ANNA });
    const stored = results.find(ANNA.id, jobId);
    await rm(stored?.path ?? '');
    const deleted = await ask(`/v1/results/${jobId}`, { as: ANNA });
    for (const answer of [foreign, preview, malformed, deleted]) {
      expect([answer.status, answer.text]).toEqual([404, unknown.text]);
    }
  });
});

describe('inputs', () => {
  const sha256 = createHash('sha256').update(png).digest('hex');

  test('201 the first time, 200 after, and the exchange is told', async () => {
    const send = () => ask(`/v1/inputs/${sha256}`, { as: ANNA, method: 'PUT', body: png });
    expect((await send()).status).toBe(201);
    expect((await send()).status).toBe(200);
    expect(inputs.has(ANNA.id, sha256)).toBe(true);
    expect(arrived).toEqual([`anna ${sha256}`, `anna ${sha256}`]);
  });

  test('what one token sent, another one has not', async () => {
    await ask(`/v1/inputs/${sha256}`, { as: ANNA, method: 'PUT', body: png });
    expect((await ask(`/v1/inputs/${sha256}`, { as: BERT, method: 'PUT', body: png })).status).toBe(201);
  });

  test.each([
    ['another hash than announced', '0'.repeat(64), png, 400, 'do not have the SHA-256'],
    ['no hash', 'photo.png', png, 400, 'must be the SHA-256'],
    ['no image', createHash('sha256').update('text').digest('hex'), Buffer.from('text'), 400, 'not supported'],
  ])('%s is refused and nothing is kept', async (_, name, body, status, message) => {
    const answer = await ask(`/v1/inputs/${name}`, { as: ANNA, method: 'PUT', body });
    expect([answer.status, answer.text]).toEqual([status, expect.stringContaining(message)]);
    expect(inputs.has(ANNA.id, name)).toBe(false);
    expect(arrived).toEqual([]);
    expect(await readdir(join(dir, 'inputs', ANNA.id)).catch(() => [])).toEqual([]);
  });

  test('more than 32 MiB is 413, announced or not', async () => {
    const announced = await ask(`/v1/inputs/${sha256}`, {
      as: ANNA,
      method: 'PUT',
      headers: { 'content-length': 33 * 1024 ** 2, expect: '100-continue' },
      body: Readable.from([]),
    });
    expect(announced.status).toBe(413);
    const chunks = Readable.from(Array.from({ length: 33 }, () => Buffer.alloc(1024 ** 2)));
    const unannounced = await ask(`/v1/inputs/${sha256}`, { as: ANNA, method: 'PUT', body: chunks });
    expect(unannounced.status).toBe(413);
    expect(inputs.has(ANNA.id, sha256)).toBe(false);
  });

  test('one that stalls is 408, one that comes steadily is not, however long it takes', async () => {
    const stalled = new Readable({ read: () => undefined });
    stalled.push(png.subarray(0, 20));
    const answer = await ask(`/v1/inputs/${sha256}`, { as: ANNA, method: 'PUT', body: stalled });
    expect([answer.status, answer.text]).toEqual([408, expect.stringContaining('TIMEOUT')]);
    expect(await readdir(join(dir, 'inputs', ANNA.id))).toEqual([]);
    const pieces = Array.from({ length: 5 }, () => Buffer.alloc(300_000));
    const steady = Readable.from(slowly(pieces, 100));
    const refused = await ask(`/v1/inputs/${sha256}`, { as: ANNA, method: 'PUT', body: steady });
    expect(refused.text).toContain('do not have the SHA-256'); // all of it was read
  });

  test('a viewer may not send', async () => {
    expect((await ask(`/v1/inputs/${sha256}`, { as: VERA, method: 'PUT', body: png })).status).toBe(403);
  });
});

async function* slowly(pieces: readonly Buffer[], everyMs: number): AsyncGenerator<Buffer> {
  for (const piece of pieces) {
    await delay(everyMs);
    yield piece;
  }
}

type Ask = {
  as?: { id: string };
  method?: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE';
  headers?: OutgoingHttpHeaders;
  body?: Buffer | Readable;
};

async function ask(path: string, { as, method = 'GET', headers = {}, body }: Ask = {}) {
  const answer = await fetchBody(base + path, {
    // HEAD is not one of the client's own methods: nothing of ours needs it.
    method: method as 'GET',
    headers: { ...headers, ...(as === undefined ? {} : { authorization: as.id }) },
    ...(body === undefined ? {} : { body }),
    signal: AbortSignal.timeout(5_000),
    deadlineMs: 5_000,
    maxBytes: 1e6,
  });
  return { ...answer, text: answer.body.toString() };
}
