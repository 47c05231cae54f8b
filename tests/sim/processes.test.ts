import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { once } from 'node:events';
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

test('--exit-after N --exit-code C, and 0 during the start', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--exit-after', '2', '--exit-code', '7']);
  expect([(await server.generate()).status, (await server.generate()).status]).toEqual([200, 200]);
  expect(await server.exited).toEqual([7, null]);
  const early = await SimServer.spawnOmni(host, ['--exit-after', '0', '--exit-code', '8', '--load-ms', '100']);
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

test('--fork: a worker in the same group holds the memory, and follows a killed parent', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--fork']);
  const worker = entryOf(host).pid;
  expect(sessionAndGroup(worker)).toEqual(sessionAndGroup(server.pid));
  kill(server.pid);
  await server.exited;
  await eventually('the worker followed', () => !isAlive(worker));
  expect(host.usedMiB()).toBe(0);
});

test('--setsid: the worker is in a session of its own', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--setsid']);
  const worker = entryOf(host).pid;
  await eventually('it has its own session', () => sessionAndGroup(worker).every((id) => id === worker));
  expect(worker).not.toBe(server.pid);
});

test('--orphan: the worker outlives a killed parent and keeps the memory', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--orphan']);
  const worker = entryOf(host).pid;
  kill(server.pid);
  await server.exited;
  expect(
    await isOpenAfter(
      eventually('the worker followed', () => !isAlive(worker)),
      500,
    ),
  ).toBe(true);
  expect(host.usedMiB()).toBe(20_000);
  kill(worker);
  await eventually('the memory is back', () => host.usedMiB() === 0);
});

test('a worker that dies alone takes the engine', async () => {
  await using host = await SimHost.create();
  await using server = await SimServer.omni(host, ['--fork', '--generate-ms', '5000']);
  const work = server.generate();
  await eventually('it works', () => !!entryOf(host).isBusy);
  kill(entryOf(host).pid);
  expect((await work).at('error.message')).toContain('EngineCore encountered an issue');
  expect((await server.get('/health')).status).toBe(503);
  expect(server.stderr).toContain('Diffusion worker(s) died unexpectedly');
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

function sessionAndGroup(pid: number): number[] {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return [Number(fields[2]), Number(fields[3])];
}
