import { appendFile, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cleanLines, lastStep, ServerLog } from '../../../agent/model/server-log.ts';
import { until } from './model-host.ts';

async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'gantry-log-'));
  try {
    await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

describe('a progress bar', () => {
  const ROWS: [text: string, step: ReturnType<typeof lastStep>][] = [
    [' 48%|████▊     | 24/50 [00:03<00:03,  7.73it/s]', { step: 24, steps: 50 }],
    ['  0%|          | 0/9 [00:00<?, ?it/s]\r 11%|█         | 1/9 [00:00<00:04]', { step: 1, steps: 9 }],
    ['INFO GET /health 200', undefined],
    ['cached 24/50 blocks', undefined],
  ];
  test.each(ROWS)('%j', (text, step) => {
    expect(lastStep(text)).toEqual(step);
  });
});

test('lines for an error have no colours, no old states of a bar and no secrets', () => {
  const text = '\u001b[31mERROR\u001b[0m token hf_abcdefghijkl bad\r\n 10%\r 20%\rdone\n\n' + 'x'.repeat(500);
  const [error, bar, long] = cleanLines(text);
  expect(error).toBe('ERROR token hf_[redacted] bad');
  expect(bar).toBe('done');
  expect(long).toHaveLength(301);
});

test('following survives truncation', async () => {
  await inDirectory(async (directory) => {
    const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
    await writeFile(log.path, 'before\n');
    const stop = new AbortController();
    let seen = '';
    const following = log.follow({ signal: stop.signal, onText: (text) => (seen += text) });
    // The follower starts at the end of the file as it is when it first looks, so one line alone might come too early.
    while (!seen.includes('one')) {
      await appendFile(log.path, 'one\n');
      await setImmediate();
    }
    await truncate(log.path, 0);
    await appendFile(log.path, 'two\n');
    await until(() => seen.includes('two'));
    expect(seen).not.toContain('before');
    stop.abort();
    await following;
  });
});

test('a log that has grown too large keeps its end in a second file, and the server goes on in the first', async () => {
  await inDirectory(async (directory) => {
    const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
    const server = await log.openForServer();
    await server.truncate(30 * 1024 * 1024);
    await server.write('the end\n');
    await log.cap();
    await server.write('more\n');
    await server.close();
    expect(await readFile(log.path, 'utf8')).toBe('more\n');
    const older = await readFile(`${log.path}.1`);
    expect(older).toHaveLength(20 * 1024 * 1024);
    expect(older.subarray(-8).toString()).toBe('the end\n');
    await log.cap();
    expect(await readFile(log.path, 'utf8')).toBe('more\n');
  });
});

test('of older starts the last few logs stay', async () => {
  await inDirectory(async (directory) => {
    for (let day = 10; day < 20; day += 1) await writeFile(join(directory, `a-202601${day}000000000.log`), '');
    await writeFile(join(directory, 'a-20260110000000000.log.1'), '');
    await writeFile(join(directory, 'a-20260119000000000.log.1'), '');
    await writeFile(join(directory, 'a-b-20260110000000000.log'), '');
    const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
    const names = await readdir(directory);
    expect(names.filter((name) => /^a-\d+\.log$/.test(name))).toHaveLength(4);
    expect(names.filter((name) => name.endsWith('.1'))).toEqual(['a-20260119000000000.log.1']);
    expect(names).toContain('a-b-20260110000000000.log');
    expect(log.path > join(directory, 'a-20260119000000000.log')).toBe(true);
  });
});
