import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type LedgerEntry, startTimeOf } from '../../scripts/sim/lib/ledger.ts';
import { eventually, isAlive, SimHost } from './sim-server.ts';

const own = { pid: process.pid, startTime: startTimeOf(process.pid) ?? '', gpuUuid: 'GPU-one', name: 'test' };

async function sleeper(): Promise<{ entry: LedgerEntry; end: () => Promise<void> }> {
  const child = spawn('sleep', ['60']);
  const ended = once(child, 'exit');
  const pid = child.pid ?? 0;
  return {
    entry: { ...own, pid, startTime: startTimeOf(pid) ?? '', usedMiB: 1_000 },
    end: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
}

test('a living process holds what it noted last', async () => {
  await using host = await SimHost.create();
  host.ledger.note({ ...own, usedMiB: 100 });
  host.ledger.note({ ...own, usedMiB: 300 });
  host.ledger.note({ ...own, gpuUuid: 'GPU-two', usedMiB: 50 });
  expect([host.usedMiB('GPU-one'), host.usedMiB('GPU-two')]).toEqual([300, 50]);
});

test('the end of a process frees its memory and removes its file', async () => {
  await using host = await SimHost.create();
  const { entry, end } = await sleeper();
  host.ledger.note(entry);
  expect(host.usedMiB()).toBe(1_000);
  await end();
  expect(host.usedMiB()).toBe(0);
  expect(readdirSync(join(host.dir, 'processes'))).toEqual([]);
});

test('a later process with the same pid holds nothing of the earlier one', async () => {
  await using host = await SimHost.create();
  host.ledger.note({ ...own, startTime: '1', usedMiB: 1_000 });
  expect(host.usedMiB()).toBe(0);
});

test('a zombie is dead', async () => {
  await using host = await SimHost.create();
  // `sleep` takes the shell's place and never waits for the child it inherits.
  const child = spawn('sh', ['-c', 'sleep 0 & echo $!; exec sleep 60']);
  const ended = once(child, 'exit');
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const pid = Number(line.toString());
  try {
    await eventually('the child became a zombie', () => !isAlive(pid));
    host.ledger.note({ ...own, pid, startTime: '1', usedMiB: 1_000 });
    expect(host.usedMiB()).toBe(0);
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
});

test('memory lingers after a death for as long as it was asked to', async () => {
  await using host = await SimHost.create();
  const { entry, end } = await sleeper();
  host.ledger.note({ ...entry, lingerMs: 300 });
  await end();
  const diedMs = performance.now();
  expect(host.ledger.entries()).toMatchObject([{ usedMiB: 1_000, isAlive: false }]);
  await eventually('the memory is back', () => host.usedMiB() === 0);
  expect(performance.now() - diedMs).toBeGreaterThanOrEqual(295);
});

test('files that are no entries are ignored', async () => {
  await using host = await SimHost.create();
  host.ledger.note({ ...own, usedMiB: 100 });
  writeFileSync(join(host.dir, 'processes', 'note.json'), 'not json');
  writeFileSync(join(host.dir, 'processes', 'half.json.1.tmp'), '{"pid":');
  expect(host.usedMiB()).toBe(100);
});

test('a reader beside a writer always sees one whole entry', async () => {
  await using host = await SimHost.create();
  host.ledger.note({ ...own, usedMiB: 1 });
  const path = join(host.dir, 'processes', readdirSync(join(host.dir, 'processes'))[0] ?? '');
  const text = JSON.stringify({ ...own, usedMiB: 2 });
  const code = `const fs=require('fs');for(let n=0;n<3000;n++){fs.writeFileSync(process.argv[1]+'.w.tmp',process.argv[2]);fs.renameSync(process.argv[1]+'.w.tmp',process.argv[1]);}`;
  const writer = spawn(process.execPath, ['-e', code, path, text]);
  let isWriting = true;
  const ended = once(writer, 'exit').then(() => (isWriting = false));
  const seen = new Set<number>();
  await eventually('the writer ended', () => {
    for (let reads = 0; reads < 50; reads += 1) seen.add(host.usedMiB());
    return !isWriting;
  });
  await ended;
  expect([...seen].filter((mib) => mib !== 1 && mib !== 2)).toEqual([]);
});
