import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readlink, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { BatchLock, sweepDeadLocks } from '../../../bridge/fleet/batch-lock.ts';

const me = { pid: process.pid, client: 'me' };

async function temporary(name = 'x'): Promise<{ path: string } & AsyncDisposable> {
  const root = await mkdtemp(join(tmpdir(), 'gantry-lock-'));
  const path = join(root, name);
  await mkdir(path, { recursive: true });
  return { path, [Symbol.asyncDispose]: () => rm(root, { recursive: true, force: true }) };
}

async function acquired(path: string): Promise<BatchLock> {
  const lock = await BatchLock.acquire(path, me);
  if (!(lock instanceof BatchLock)) throw new Error(`held by ${lock.client}`);
  return lock;
}

test.each(['x', `long-${'x'.repeat(120)}`])('one holder at a time, who is told to the others (%s)', async (name) => {
  await using directory = await temporary(name);
  const lock = await acquired(directory.path);
  expect(lock.isHeld).toBe(true);
  expect(await BatchLock.acquire(directory.path, { pid: 1, client: 'other' })).toEqual(me);
  await lock[Symbol.asyncDispose]();
  await (await acquired(directory.path))[Symbol.asyncDispose]();
});

test('the lock of a killed holder is free', async () => {
  await using directory = await temporary();
  const module = fileURLToPath(new URL('../../../bridge/fleet/batch-lock.ts', import.meta.url));
  const script = `const { BatchLock } = await import(${JSON.stringify(module)});
    await BatchLock.acquire(${JSON.stringify(directory.path)}, { pid: process.pid, client: 'doomed' });
    console.log('held'); await new Promise((resolve) => process.stdin.once('data', resolve));`;
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data', { signal: AbortSignal.timeout(8_000) });
  expect(await BatchLock.acquire(directory.path, me)).toMatchObject({ client: 'doomed', pid: child.pid });
  child.kill('SIGKILL');
  await once(child, 'exit');
  await using lock = await acquired(directory.path);
  expect(lock.isHeld).toBe(true);
});

test.skipIf(process.platform === 'win32')('several that find a dead lock: one of them gets it', async () => {
  await using directory = await temporary();
  // A plain file in its place is as dead as a socket nobody listens on.
  await writeFile(join(directory.path, 'lock'), '');
  const all = await Promise.all([1, 2, 3].map((pid) => BatchLock.acquire(directory.path, { pid, client: `${pid}` })));
  const locks = all.filter((one) => one instanceof BatchLock);
  expect(locks).toHaveLength(1);
  expect(await readdir(directory.path)).toEqual(['lock']);
  for (const lock of locks) await lock[Symbol.asyncDispose]();
  await expect(stat(join(directory.path, 'lock'))).rejects.toMatchObject({ code: 'ENOENT' });
});

test.skipIf(process.platform !== 'linux')('who loses the race for a dead lock keeps no socket', async () => {
  await using directory = await temporary();
  await writeFile(join(directory.path, 'lock'), '');
  const before = await openSockets();
  const all = await Promise.all(
    [1, 2, 3, 4].map((pid) => BatchLock.acquire(directory.path, { pid, client: `${pid}` })),
  );
  expect(await openSockets()).toBe(before + 1);
  for (const lock of all) if (lock instanceof BatchLock) await lock[Symbol.asyncDispose]();
  expect(await openSockets()).toBe(before);
  expect(await readdir(directory.path)).toEqual([]);
});

test.skipIf(process.platform === 'win32')('a holder whose socket was taken away knows it', async () => {
  await using directory = await temporary();
  const lock = await acquired(directory.path);
  await rm(join(directory.path, 'lock'));
  expect(lock.isHeld).toBe(false);
  await lock[Symbol.asyncDispose]();
});

/** Sockets this process has open. */
async function openSockets(): Promise<number> {
  const names = await readdir('/proc/self/fd');
  const targets = await Promise.all(names.map((name) => readlink(`/proc/self/fd/${name}`).catch(() => '')));
  return targets.filter((target) => target.startsWith('socket:')).length;
}

test.skipIf(process.platform === 'win32')(
  'locks of batches nobody took up again go after a day, living ones never',
  async () => {
    await using directory = await temporary();
    const nowMs = Date.now();
    const name = (n: number): string => `gantry-${userInfo().uid}-${String(n).repeat(20)}.lock`;
    const dead = async (file: string, ageMs: number): Promise<void> => {
      const server = createServer().listen(join(directory.path, 'x'));
      await once(server, 'listening');
      await rename(join(directory.path, 'x'), join(directory.path, file));
      server.close(); // removes only the name it had
      await once(server, 'close');
      await utimes(join(directory.path, file), (nowMs - ageMs) / 1_000, (nowMs - ageMs) / 1_000);
    };
    const day = 24 * 3_600_000;
    await dead(name(1), 2 * day);
    await dead(name(2), day / 2);
    await dead('somebody-elses.lock', 2 * day);
    const living = createServer((socket) => socket.end(`${JSON.stringify(me)}\n`)).listen(
      join(directory.path, name(3)),
    );
    await once(living, 'listening');
    await utimes(join(directory.path, name(3)), nowMs / 1_000 - 1e6, nowMs / 1_000 - 1e6);
    await sweepDeadLocks({ nowMs, directory: directory.path });
    expect((await readdir(directory.path)).sort()).toEqual([name(2), name(3), 'somebody-elses.lock']);
    living.close();
    await once(living, 'close');
  },
);
