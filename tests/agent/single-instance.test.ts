import { execa } from 'execa';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { AlreadyRunning, SingleInstance } from '../../agent/single-instance.ts';

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-lock-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

test('the second one is told who holds it; once released, it is free and nothing is left', async () => {
  const first = await SingleInstance.acquire(stateDir);
  await expect(SingleInstance.acquire(stateDir)).rejects.toThrow(`in use by another gantry-agent (pid ${process.pid})`);
  await first[Symbol.asyncDispose]();
  expect(await readdir(stateDir)).toEqual([]);
  await using _again = await SingleInstance.acquire(stateDir);
});

test('a holder that was killed holds nothing', async () => {
  const script = `require('net').createServer().listen(${JSON.stringify(join(stateDir, 'agent.sock'))}, () => process.kill(process.pid, 'SIGKILL'))`;
  await execa('node', ['-e', script], { reject: false });
  expect(await readdir(stateDir)).toEqual(['agent.sock']);
  await using _lock = await SingleInstance.acquire(stateDir);
  await expect(SingleInstance.acquire(stateDir)).rejects.toThrow(AlreadyRunning);
  expect(await readdir(stateDir)).toEqual(['agent.sock']);
});

test('of several that start at once after a crash, exactly one gets it', async () => {
  const script = `require('net').createServer().listen(${JSON.stringify(join(stateDir, 'agent.sock'))}, () => process.kill(process.pid, 'SIGKILL'))`;
  await execa('node', ['-e', script], { reject: false });
  const tries = await Promise.allSettled(Array.from({ length: 8 }, () => SingleInstance.acquire(stateDir)));
  const winners = tries.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
  const refusals = tries.flatMap((each) => (each.status === 'rejected' ? [each.reason as unknown] : []));
  for (const winner of winners) await winner[Symbol.asyncDispose]();
  expect(refusals.every((reason) => reason instanceof AlreadyRunning)).toBe(true);
  expect(winners).toHaveLength(1);
});

test('somebody who asked and stays connected does not keep it from being released', async () => {
  const first = await SingleInstance.acquire(stateDir);
  const asking = connect({ path: join(stateDir, 'agent.sock'), allowHalfOpen: true });
  await once(asking, 'data');
  await first[Symbol.asyncDispose]();
  asking.destroy();
});

test('a directory too deep for a socket is refused in words', async () => {
  await expect(SingleInstance.acquire(join(stateDir, 'x'.repeat(100)))).rejects.toThrow('Use a shorter state_dir.');
});
