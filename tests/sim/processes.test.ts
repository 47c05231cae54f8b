import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { entryOf, eventually, isAlive, isOpenAfter, kill, SimHost, SimServer } from './sim-server.ts';

test('SIGTERM ends it in order, and its worker', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--fork']);
  const worker = entryOf(host).pid;
  expect(worker).not.toBe(server.pid);
  server.child.kill('SIGTERM');
  expect(await server.exited).toEqual([0, null]);
  expect(server.stderr).toContain('Shutting down FastAPI HTTP server.');
  expect([isAlive(worker), host.usedMiB()]).toEqual([false, 0]);
});

test('--ignore-sigterm', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--ignore-sigterm']);
  server.child.kill('SIGTERM');
  expect(await isOpenAfter(server.exited, 400)).toBe(true);
  expect((await server.get('/health')).status).toBe(200);
});

test('--exit-delay-ms: the port is free at once, the memory only at the end', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--exit-delay-ms', '600']);
  server.child.kill('SIGTERM');
  await eventually('the port is closed', async () => {
    const socket = connect(server.port, '127.0.0.1');
    const isRefused = await once(socket, 'connect').then(
      () => false,
      () => true,
    );
    socket.destroy();
    return isRefused;
  });
  expect(host.usedMiB()).toBe(20_000);
  expect(await isOpenAfter(server.exited, 300)).toBe(true);
  await server.exited;
  expect(host.usedMiB()).toBe(0);
});

test('--request-log has when each request came and when its last byte went out', async () => {
  await using host = await SimHost.create();
  const file = join(host.dir, 'requests.jsonl');
  await using server = await SimServer.omni(host, ['--generate-ms', '150', '--request-log', file]);
  const beforeMs = Date.now();
  await server.generate();
  await eventually('it is noted', async () => (await loggedImages(file)).length === 1);
  const [first] = await loggedImages(file);
  expect(first).toMatchObject({ method: 'POST', path: '/v1/images/generations', status: 200 });
  expect(Number(first?.arrivedMs)).toBeGreaterThan(beforeMs - 50);
  expect(Number(first?.answeredMs) - Number(first?.arrivedMs)).toBeGreaterThan(140);
  expect(Number(first?.answeredMs)).toBeLessThan(Date.now() + 50);
  await using edits = await SimServer.step1x(host, ['--request-log', join(host.dir, 'edits.jsonl')]);
  await edits.get('/health');
  await eventually('Step1X-Edit notes them too', () => existsSync(join(host.dir, 'edits.jsonl')));
});

async function loggedImages(file: string): Promise<Record<string, unknown>[]> {
  const lines = (await readFile(file, 'utf8')).split('\n').filter((line) => line.includes('/v1/images/'));
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>);
}

test('--exit-after N --exit-code C, and 0 during the start', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--exit-after', '2', '--exit-code', '7']);
  expect([(await server.generate()).status, (await server.generate()).status]).toEqual([200, 200]);
  expect(await server.exited).toEqual([7, null]);
  await using early = await SimServer.spawnOmni(host, ['--exit-after', '0', '--exit-code', '8', '--load-ms', '100']);
  expect(await early.exited).toEqual([8, null]);
  expect(early.stderr).not.toContain('startup complete');
});

test('--crash-on WORD ends it without an answer, worker and all', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--crash-on', 'dragon', '--exit-code', '9', '--fork']);
  expect((await server.generate()).status).toBe(200);
  await expect(server.generate({ prompt: 'a dragon' })).rejects.toThrow();
  expect(await server.exited).toEqual([9, null]);
  await eventually('the memory is back', () => host.usedMiB() === 0);
});

test('--vram-linger-ms keeps the memory after the death, without a process', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--vram-linger-ms', '500']);
  kill(server.pid);
  await server.exited;
  const { stdout } = await host.nvidiaSmi('--query-compute-apps=pid', '--format=csv,noheader');
  expect([stdout, host.usedMiB()]).toEqual(['', 20_000]);
  await eventually('the memory is back', () => host.usedMiB() === 0);
});

test('--ledger wins over the environment', async () => {
  await using host = await SimHost.create();
  await using other = await SimHost.create();
  await using _server = await SimServer.omni(host, ['--ledger', other.dir]);
  expect([host.usedMiB(), other.usedMiB()]).toEqual([0, 20_000]);
});

test('--log-flood writes its megabytes, and requests are answered all the same', async () => {
  await using host = await SimHost.create();
  await using quiet = await SimServer.omni(host);
  await using server = await SimServer.omni(host, ['--log-flood', '20']);
  const before = server.stderr.length;
  const startedMs = performance.now();
  expect((await server.generate({ num_inference_steps: 1 })).status).toBe(200);
  await eventually('five megabytes came', () => server.stderr.length - before > 5_000_000);
  expect((server.stderr.length - before) / (performance.now() - startedMs), 'bytes per ms').toBeLessThan(40_000);
  expect(quiet.stderr.length).toBeLessThan(5_000);
});

test('a log that nobody reads any more does not end it', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host);
  server.child.stderr?.destroy();
  for (let count = 0; count < 3; count += 1) expect((await server.generate()).status).toBe(200);
});
