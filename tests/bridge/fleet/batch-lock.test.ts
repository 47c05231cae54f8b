import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readlink, rename, rm, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { BatchLock, lockHolder, sweepDeadLocks } from '../../../bridge/fleet/batch-lock.ts';

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

test('a holder that hangs has it all the same; the lock of a killed one is free', async () => {
  await using directory = await temporary();
  const module = fileURLToPath(new URL('../../../bridge/fleet/batch-lock.ts', import.meta.url));
  const script = `const { BatchLock } = await import(${JSON.stringify(module)});
    await BatchLock.acquire(${JSON.stringify(directory.path)}, { pid: process.pid, client: 'doomed' });
    console.log('held'); await new Promise((resolve) => process.stdin.once('data', resolve));`;
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data', { signal: AbortSignal.timeout(60_000) });
  // Asked again: an answer that takes a second on a busy machine is none, and a signal arrives a moment later.
  await expect.poll(() => BatchLock.acquire(directory.path, me)).toEqual({ client: 'doomed', pid: child.pid });
  if (process.platform !== 'win32') {
    child.kill('SIGSTOP');
    await expect.poll(() => BatchLock.acquire(directory.path, me)).toEqual({ pid: 0, client: 'unknown' });
  }
  child.kill('SIGKILL');
  await once(child, 'exit');
  await using lock = await acquired(directory.path);
  expect(lock.isHeld).toBe(true);
});

test('who only asks is told the holder, and changes nothing', async () => {
  await using directory = await temporary();
  expect(await lockHolder(join(directory.path, 'nowhere'))).toBeUndefined();
  expect(await lockHolder(directory.path)).toBeUndefined();
  await using _lock = await acquired(directory.path);
  const names = await readdir(directory.path);
  expect(await lockHolder(directory.path)).toEqual(me);
  expect(await readdir(directory.path)).toEqual(names);
});

test.skipIf(process.platform === 'win32')('several that find a dead lock: one of them gets it', async () => {
  await using directory = await temporary();
  // A plain file in its place is as dead as a socket nobody listens on; with `#` its process died before it listened.
  for (const name of ['lock.00000000', 'lock.ffffffff', 'lock#00000000'])
    await writeFile(join(directory.path, name), '');
  await using lock = await wonByOne(directory.path, 3);
  expect(await readdir(directory.path)).toEqual([expect.stringMatching(/^lock\.[0-9a-f]{8}$/)]);
  await lock[Symbol.asyncDispose]();
  expect(await readdir(directory.path)).toEqual([]);
});

test.skipIf(process.platform !== 'linux')('who loses the race for a dead lock keeps no socket', async () => {
  await using directory = await temporary();
  await writeFile(join(directory.path, 'lock.00000000'), '');
  const before = await openSockets();
  const lock = await wonByOne(directory.path, 4);
  await expect.poll(openSockets).toBe(before + 1);
  await lock[Symbol.asyncDispose]();
  await expect.poll(openSockets).toBe(before);
  expect(await readdir(directory.path)).toEqual([]);
});

test.skipIf(process.platform === 'win32')('a holder whose socket was taken away knows it', async () => {
  await using directory = await temporary();
  const lock = await acquired(directory.path);
  const [name = ''] = await readdir(directory.path);
  await rm(join(directory.path, name));
  expect(lock.isHeld).toBe(false);
  await writeFile(join(directory.path, name), '');
  expect(lock.isHeld).toBe(false);
  await lock[Symbol.asyncDispose]();
});

test.skipIf(process.platform === 'win32')('a former release that lives holds it, a dead one does not', async () => {
  await using directory = await temporary();
  const former = createServer((socket) => socket.end(`${JSON.stringify({ pid: 7, client: 'old' })}\n`));
  await once(former.listen(join(directory.path, 'lock')), 'listening');
  expect(await BatchLock.acquire(directory.path, me)).toEqual({ pid: 7, client: 'old' });
  await rename(join(directory.path, 'lock'), join(directory.path, 'kept'));
  former.close(); // removes only the name it had
  await once(former, 'close');
  await rename(join(directory.path, 'kept'), join(directory.path, 'lock'));
  await (await acquired(directory.path))[Symbol.asyncDispose]();
});

/**
 * So many try at once until one of them holds it. To the others a process that stalls for a second holds it, and then nobody
 * does: on a busy machine that happens, and is why bridges look again.
 */
async function wonByOne(path: string, tries: number): Promise<BatchLock> {
  for (;;) {
    const pids = Array.from({ length: tries }, (_, pid) => pid);
    const all = await Promise.all(pids.map((pid) => BatchLock.acquire(path, { pid, client: `${pid}` })));
    const locks = all.filter((one) => one instanceof BatchLock);
    expect(locks.length).toBeLessThan(2);
    if (locks[0] !== undefined) return locks[0];
  }
}

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
    const name = (n: number): string => `gantry-${userInfo().uid}-${String(n).repeat(20)}.lock.${String(n).repeat(8)}`;
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
