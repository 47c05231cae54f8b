import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setImmediate as breath } from 'node:timers/promises';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { until } from '../model/model-host.ts';

const MAX_PIXELS = 80e6;
let dir: string;
let path: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-pictures-'));
  path = join(dir, 'fox.png');
  await sharp({ create: { width: 64, height: 48, channels: 3, background: '#804020' } }).toFile(path);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

function check(pictures: PictureProcess, previewPath = join(dir, 'preview.jpg')) {
  return pictures.check(path, { previewPath, maxPixels: MAX_PIXELS });
}

/** Pids of decoders that this process, or another one, has started. */
function decoders(parent = process.pid): number[] {
  return readdirSync('/proc').flatMap((name) => {
    try {
      if (!readFileSync(`/proc/${name}/cmdline`, 'utf8').includes('picture-worker.mjs')) return [];
      const [state, ppid] = readFileSync(`/proc/${name}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
      return Number(ppid) === parent && state !== 'Z' ? [Number(name)] : [];
    } catch {
      return []; // no process, or gone meanwhile
    }
  });
}

describe.skipIf(process.platform !== 'linux')('the process that decodes pictures', () => {
  test('is there for pictures only, and comes again', async () => {
    await using pictures = new PictureProcess({ idleMs: 50 });
    expect(decoders()).toEqual([]);
    for (let n = 0; n < 2; n += 1) {
      expect(await check(pictures)).toEqual({ width: 64, height: 48, format: 'png' });
      expect(decoders()).toHaveLength(1);
      await until(() => decoders().length === 0);
    }
  });

  test('stays while one is expected, and one is enough for many at once', async () => {
    await using pictures = new PictureProcess({ idleMs: 1 });
    const [first, second] = [pictures.expect(), pictures.expect()];
    await until(() => decoders().length === 1);
    const [pid] = decoders();
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    await Promise.all([1, 2, 3, 4].map((n) => check(pictures, join(dir, `${n}.jpg`))));
    expect(decoders()).toEqual([pid]);
    second[Symbol.dispose]();
    await until(() => decoders().length === 0);
  });

  test('dies at a picture: that one is refused, and the next one has another process', async () => {
    await using pictures = new PictureProcess();
    using _expected = pictures.expect();
    await until(() => decoders().length === 1);
    const [pid = 0] = decoders();
    process.kill(pid, 'SIGSTOP');
    const failing = check(pictures);
    const next = check(pictures);
    process.kill(pid, 'SIGKILL');
    await expect(failing).rejects.toThrow('did not survive');
    expect(await next).toMatchObject({ width: 64 });
  });

  test('says with a code what the disk refused, and without one what is wrong with a picture', async () => {
    await using pictures = new PictureProcess();
    await expect(check(pictures, join(dir, 'nowhere', 'preview.jpg'))).rejects.toMatchObject({ code: 'ENOENT' });
    await writeFile(join(dir, 'bad.png'), 'no picture');
    const bad = pictures.check(join(dir, 'bad.png'), { previewPath: join(dir, 'bad.jpg'), maxPixels: MAX_PIXELS });
    const error: unknown = await bad.catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(Error);
    expect(error).not.toHaveProperty('code');
  });

  test('is ended at once when it is disposed at work, and takes nothing afterwards', async () => {
    const pictures = new PictureProcess();
    using _expected = pictures.expect();
    await until(() => decoders().length === 1);
    process.kill(decoders()[0] ?? 0, 'SIGSTOP');
    const failing = expect(check(pictures)).rejects.toThrow('did not survive');
    await breath(); // it is sent
    await pictures[Symbol.asyncDispose]();
    await failing;
    expect(decoders()).toEqual([]);
    await expect(check(pictures)).rejects.toThrow('the agent stops');
  });

  test('ends with an agent that is killed', async () => {
    const program = join(dir, 'agent.mts');
    const source = resolve('agent/job/picture-process.ts');
    await writeFile(
      program,
      `import { PictureProcess } from ${JSON.stringify(source)};
       const pictures = new PictureProcess();
       pictures.expect();
       setInterval(() => process.stdout.write('go'), 50);`,
    );
    const agent = execFile(process.execPath, ['--import', 'tsx', program]);
    await once(agent.stdout ?? agent, 'data');
    const [pid = 0] = decoders(agent.pid);
    expect(pid).toBeGreaterThan(0);
    agent.kill('SIGKILL');
    await once(agent, 'exit');
    await until(() => !isAlive(pid));
  });
});

function isAlive(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.startsWith('Z') === false;
  } catch {
    return false; // gone
  }
}
