import { build } from 'esbuild';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { BatchLock } from '../../../bridge/fleet/batch-lock.ts';
import { pause } from '../../../shared/abort.ts';

const MODULE = fileURLToPath(new URL('../../../bridge/fleet/batch-lock.ts', import.meta.url));
const RACERS = 5;
/** Enough to catch a takeover that waits a tenth of a second instead of being sure, in three runs of four. */
const DEATHS = 10;
/** However slow the machine is: what happened until then is judged. */
const LONGEST_MS = 10_000;
const HOPELESS_MS = 60_000;
/** Whoever is stopped goes on after four of these, as a rule. */
const STEP_MS = 40;

// Holders die again and again, and everybody is stopped at random: before any look at a file and any change of one (by
// itself), and anywhere (from here). What each writes down is in the order in which it happened.
test.skipIf(process.platform === 'win32')('dying holders and stalls at any point: never two at a time', async () => {
  const root = await mkdtemp(join(tmpdir(), 'gantry-lock-'));
  onTestFinished(() => rm(root, { recursive: true }));
  const directory = join(root, 'x');
  const log = join(root, 'log');
  await mkdir(directory);
  await writeFile(log, '');
  const program = join(root, 'racer.mjs');
  const stdin = { contents: PROGRAM, resolveDir: '/', loader: 'ts' as const };
  await build({ stdin, outfile: program, bundle: true, platform: 'node', format: 'esm', target: 'node20' });
  const start = (): ChildProcess => spawn(process.execPath, [program, directory, log], { stdio: 'inherit' });
  const racers = Array.from({ length: RACERS }, start);
  let story = ''; // what was written before we kill anybody: those who die by themselves write it down before
  try {
    const startMs = performance.now();
    while (deathsIn(story) < DEATHS) {
      if (performance.now() - startMs > (deathsIn(story) === 0 ? HOPELESS_MS : LONGEST_MS)) break;
      await pause(STEP_MS, new AbortController().signal);
      for (const [index, racer] of racers.entries()) {
        if (hasEnded(racer)) racers[index] = start();
        else if (Math.random() < 0.25) racer.kill('SIGCONT');
        else if (Math.random() < 0.05) racer.kill('SIGSTOP');
      }
      story = await readFile(log, 'utf8');
    }
  } finally {
    await Promise.all(racers.map(ended));
  }
  expect(doubleHolders(story)).toEqual([]);
  expect(deathsIn(story)).toBeGreaterThan(0);
  const lock = await BatchLock.acquire(directory, { pid: process.pid, client: 'last' });
  if (!(lock instanceof BatchLock)) throw new Error(`held by ${lock.client}`);
  expect(await readdir(directory)).toHaveLength(1);
  await lock[Symbol.asyncDispose]();
  expect(await readdir(directory)).toEqual([]);
});

/** Lines in which somebody began to hold while another did. */
function doubleHolders(story: string): string[] {
  const holders = new Set<string>();
  return story.split('\n').flatMap((line) => {
    const [pid = '', what] = line.split(' ');
    const others = [...holders].filter((other) => other !== pid);
    if (what === 'holds') holders.add(pid);
    else holders.delete(pid);
    return what === 'holds' && others.length > 0 ? [`${line} beside ${others.join(', ')}`] : [];
  });
}

function deathsIn(story: string): number {
  return story.split('\n').filter((line) => line.endsWith(' dies')).length;
}

async function ended(racer: ChildProcess): Promise<void> {
  if (hasEnded(racer)) return;
  racer.kill('SIGKILL');
  await once(racer, 'exit');
}

function hasEnded(racer: ChildProcess): boolean {
  return racer.exitCode !== null || racer.signalCode !== null;
}

/** Writes down that it holds after it got the lock, and that it does not any more before it gives it up. */
const PROGRAM = `
  import fs, { appendFileSync } from 'node:fs';
  import { syncBuiltinESMExports } from 'node:module';
  import { setTimeout as delay } from 'node:timers/promises';
  import { BatchLock } from ${JSON.stringify(MODULE)};
  const [directory, log] = process.argv.slice(-2);

  // Most often where names change hands.
  const stalls = { renameSync: 0.6, chmodSync: 0.1, existsSync: 0.1, lstatSync: 0.1, rmSync: 0.1 };
  for (const [name, share] of Object.entries(stalls)) {
    const real = fs[name];
    fs[name] = (...args) => {
      if (Math.random() < share) process.kill(process.pid, 'SIGSTOP');
      return real(...args);
    };
  }
  syncBuiltinESMExports();

  for (;;) {
    const lock = await BatchLock.acquire(directory, { pid: process.pid, client: 'racer' });
    if (lock instanceof BatchLock) {
      note('holds');
      await delay(Math.random() * 400);
      const isDying = Math.random() < 0.75;
      note(isDying ? 'dies' : 'gives it up');
      if (isDying) process.kill(process.pid, 'SIGKILL');
      await lock[Symbol.asyncDispose]();
    }
    await delay(Math.random() * 20);
  }

  function note(what) {
    appendFileSync(log, process.pid + ' ' + what + '\\n');
  }
`;
