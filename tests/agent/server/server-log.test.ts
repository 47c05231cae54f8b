import { execa } from 'execa';
import { statSync } from 'node:fs';
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cleanLines, secretsIn } from '../../../agent/server/log-lines.ts';
import { lastStep, ServerLog } from '../../../agent/server/server-log.ts';
import { until } from '../model/model-host.ts';

const MIB = 1024 * 1024;

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
  const [error, bar, long] = cleanLines(text, { maxChars: 300 });
  expect(error).toBe('ERROR token hf_[redacted] bad');
  expect(bar).toBe('done');
  expect(long).toHaveLength(301);
});

test('a directory for logs is made for its owner and his group only', async () => {
  await inDirectory(async (directory) => {
    const logDir = join(directory, 'state', 'logs');
    await ServerLog.create({ logDir, slotId: 'a' });
    for (const made of [logDir, join(directory, 'state')]) expect(statSync(made).mode & 0o007).toBe(0);
  });
});

test('the last lines of an error leave out our own questions, the log for a person shows them', async () => {
  await inDirectory(async (directory) => {
    const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
    const asked = 'INFO:     127.0.0.1:39158 - "GET /health HTTP/1.1" 200 OK\n';
    await writeFile(log.path, `RuntimeError: CUDA error\n${asked.repeat(40)}`);
    expect(await log.lastLines()).toBe('RuntimeError: CUDA error');
    expect(await log.tail(2)).toEqual([asked.trimEnd(), asked.trimEnd()]);
  });
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

test('following shows once what comes between the look at the size and the reading', async () => {
  await inDirectory(async (directory) => {
    const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
    await writeFile(log.path, 'one\ntwo\n');
    // As if the first look had come before the second line.
    const sizes = [4, 8, 8];
    log.size = () => Promise.resolve(sizes.shift() ?? 8);
    const stop = new AbortController();
    let seen = '';
    const following = log.follow({ signal: stop.signal, onText: (text) => (seen += text), from: 0 });
    await until(() => sizes.length === 0);
    expect(seen).toBe('one\ntwo\n');
    stop.abort();
    await following;
  });
});

describe('a log that has grown too large', () => {
  const bounds = { maxMiB: 1, keep: 2 };

  test('keeps its end in an older part, and the server goes on in the first', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', bounds });
      const server = await log.openForServer();
      await server.truncate(2 * MIB);
      await server.write('\nthe end\n');
      await log.bound();
      await server.write('more\n');
      await server.close();
      expect(await readFile(log.path, 'utf8')).toBe('more\n');
      const older = await readFile(`${log.path}.1`);
      expect(older).toHaveLength(MIB);
      expect(older.subarray(-9).toString()).toBe('\nthe end\n');
      // What was said before the cut still belongs to the last lines.
      expect(await log.tail(2)).toEqual(['the end', 'more']);
      await log.bound();
      expect(await readFile(log.path, 'utf8')).toBe('more\n');
    });
  });

  test('is copied with what is written meanwhile, and never becomes a part of more than twice its bound', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', bounds });
      await appendFile(log.path, 'x'.repeat(2 * MIB));
      // As if it had been measured before more came.
      log.size = () => Promise.resolve(MIB + 1);
      await log.bound();
      expect(statSync(`${log.path}.1`).size).toBe(2 * MIB - 1);
      await appendFile(log.path, 'x'.repeat(5 * MIB));
      const again = await ServerLog.newest({ logDir: directory, slotId: 'a', bounds });
      if (again === undefined) throw new Error('it is there');
      again.size = () => Promise.resolve(MIB + 1);
      await again.bound();
      expect(statSync(`${log.path}.1`).size).toBe(2 * MIB);
    });
  });

  test('has no more parts than are kept', async () => {
    await inDirectory(async (directory) => {
      const names = ['a-20260110000000000.log', 'a-20260110000000000.log.1', 'a-20260110000000000.log.2'];
      for (const name of names) await writeFile(join(directory, name), name);
      const log = await ServerLog.newest({ logDir: directory, slotId: 'a', bounds });
      await appendFile(log?.path ?? '', 'x'.repeat(MIB));
      await log?.bound();
      expect((await readdir(directory)).sort()).toEqual(names);
      expect(await readFile(join(directory, names[2] ?? ''), 'utf8')).toBe(names[1]);
    });
  });

  test('a second time within seconds is a flood: it is cut but for its end, and the parts stay', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', bounds });
      await appendFile(log.path, `${'x'.repeat(MIB)}\nthe cause\n`);
      await log.bound();
      await appendFile(log.path, `${'y'.repeat(3 * MIB)}\nthe end\n`);
      await log.bound();
      expect(await log.size()).toBeLessThan(0.2 * MIB);
      expect((await log.tail(9)).filter((line) => line.length < 100)).toEqual([
        'the cause',
        '[gantry: 3 MiB of output dropped, too much to keep]',
        'the end',
      ]);
      expect((await readdir(directory)).filter((name) => name.includes('.log'))).toHaveLength(2);
    });
  });

  test('where no older part can be written is cut all the same', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', bounds });
      await mkdir(`${log.path}.new`); // as good as a full disk: nothing can be written there
      await appendFile(log.path, `${'x'.repeat(2 * MIB)}\nthe end\n`);
      await expect(log.bound()).rejects.toThrow();
      expect(await log.size()).toBeLessThan(0.2 * MIB);
      expect((await log.tail(1))[0]).toBe('the end');
    });
  });

  test('of a server that writes as fast as it can stays near its bound, and blocks nobody', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', bounds: { maxMiB: 4, keep: 2 } });
      const file = await log.openForServer();
      const script = 'while :; do head -c 1000000 /dev/zero | tr "\\0" "x"; echo; done';
      const flood = execa('/bin/sh', ['-c', script], { stdio: ['ignore', file.fd as 9, 'ignore'], reject: false });
      await file.close();
      const stop = new AbortController();
      const problems: unknown[] = [];
      const kept = log.keepBounded({ signal: stop.signal, onProblem: (error) => problems.push(error) });
      const memoryBefore = process.memoryUsage().rss;
      let [most, seen, last] = [0, 0, 0];
      await until(() => {
        const size = statSync(log.path).size;
        most = Math.max(most, size);
        seen += Math.max(0, size - last);
        last = size;
        return seen > 60 * MIB;
      });
      flood.kill('SIGKILL');
      await flood;
      stop.abort();
      await kept;
      expect(problems).toEqual([]);
      const names = await readdir(directory);
      const total = names.reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);
      // Between two looks it may grow by what a disk takes in that time.
      expect(total).toBeLessThan(60 * MIB);
      expect(process.memoryUsage().rss - memoryBefore).toBeLessThan(40 * MIB);
    });
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
    expect((await ServerLog.newest({ logDir: directory, slotId: 'a' }))?.path).toMatch(/a-20260119000000000\.log$/);
    expect(await ServerLog.newest({ logDir: directory, slotId: 'never-started' })).toBeUndefined();
  });
});

test('a replica and a model of a similar name have logs of their own', async () => {
  await inDirectory(async (directory) => {
    const logs = ['a#2', 'a_2', 'a'].map((slotId) => ServerLog.create({ logDir: directory, slotId }));
    const slots = (await Promise.all(logs)).map(({ path }) => ServerLog.slotOf(path));
    expect(slots).toEqual(['a~2', 'a_2', 'a']);
    expect(ServerLog.slotOf('/logs/a-20260110000000000.log.1')).toBeUndefined();
  });
});

describe('what a reader sees', () => {
  const text =
    'non-default args: {"api_key": ["sesame-open"], "port": 1}\nAuthorization: Bearer abc.def\n--api-key shh12345\nkey=topsecret\n';

  test('has no secrets, whether they look like one or are known from the environment', async () => {
    await inDirectory(async (directory) => {
      const secrets = secretsIn({ VLLM_API_KEY: 'topsecret', HF_TOKEN: 'hf_abcdefghijkl', PORT: '8000', MY_KEY: 'x' });
      expect(secrets).toEqual(['topsecret', 'hf_abcdefghijkl']);
      const log = await ServerLog.create({ logDir: directory, slotId: 'a', secrets });
      await writeFile(log.path, text);
      const seen = await log.tail(9);
      expect(seen).toEqual([
        'non-default args: {"api_key": ["[redacted]"], "port": 1}',
        'Authorization: Bearer [redacted]',
        '--api-key [redacted]',
        'key=[redacted]',
      ]);
    });
  });

  test('comes line by line while it is written, each line once and whole', async () => {
    await inDirectory(async (directory) => {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
      const stop = new AbortController();
      const lines: string[] = [];
      const following = log.followLines({ signal: stop.signal, onLine: (line) => lines.push(line) });
      while (!lines.includes('first')) {
        await appendFile(log.path, 'first\n');
        await setImmediate();
      }
      lines.length = 0;
      await appendFile(log.path, '\nhf_abc');
      await until(() => lines.length >= 0);
      await appendFile(log.path, `defghijkl\n${'z'.repeat(20_000)}\n`);
      await until(() => lines.some((line) => line.startsWith('zzz')));
      const [token, long] = lines.filter((line) => line !== 'first');
      expect(token).toBe('hf_[redacted]');
      expect(long).toHaveLength(16 * 1024 + 1);
      stop.abort();
      await following;
    });
  });
});
