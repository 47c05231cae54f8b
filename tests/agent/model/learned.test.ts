import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { jobDeadlineMs } from '../../../agent/model/job-deadline.ts';
import { peakMiB } from '../../../agent/model/footprint.ts';
import { Learned } from '../../../agent/model/learned.ts';
import { generate, omni } from './model-host.ts';

const log = pino({ level: 'silent' });
const model = omni('a');

let directory: string;
let learned: Learned;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-learned-'));
  learned = await open();
});
afterEach(async () => {
  await learned.written();
  await rm(directory, { recursive: true, force: true });
});

async function open(models = [model]): Promise<Learned> {
  const opened = new Learned({ stateDir: directory, log });
  for (const each of models) opened.configure(each);
  await opened.read();
  return opened;
}

describe('what was learned', () => {
  test('is there after a restart, medians and all', async () => {
    for (const tookMs of [90_000, 10_000, 12_000]) learned.loaded(model.id, { tookMs, heldMiB: 8_100 });
    learned.woken(model.id, { tookMs: 700 });
    learned.peak(model.id, { megapixels: 1, peakMiB: 9_000 });
    for (let jobs = 0; jobs < 60; jobs += 1) learned.job(model, { request: generate(), runMs: 1_000 });
    await learned.written();
    const next = await open();
    // The first load compiled for a minute; the median does not mind.
    expect([next.loadMs(model), next.wakeMs(model)]).toEqual([12_000, 700]);
    expect(next.of(model.id)).toMatchObject({ loadedMiB: 8_100, peaks: [{ megapixels: 1, peakMiB: 9_000 }] });
    expect(next.of(model.id).ratios).toHaveLength(50);
    expect(next.service(model).samples).toBe(60);
  });

  test('of other flags is forgotten, also while the agent runs', async () => {
    learned.loaded(model.id, { tookMs: 10_000, heldMiB: 8_100 });
    await learned.written();
    const quantised = { ...omni('a', ['--quantization', 'fp8']), id: model.id };
    expect((await open([quantised])).of(model.id).loadedMiB).toBeNull();
    learned.configure({ ...model, pin: true, releaseAfterMs: 5 }); // policies do not change what it holds
    expect(learned.of(model.id).loadedMiB).toBe(8_100);
    learned.configure(quantised);
    expect(learned.of(model.id).loadedMiB).toBeNull();
  });

  test('tells no secret of the environment', async () => {
    const secret = omni('s');
    if (secret.launch.kind === 'owned') secret.launch.env = { HF_TOKEN: 'hf_secretsecret' };
    learned.configure(secret);
    learned.loaded(secret.id, { tookMs: 1, heldMiB: 1 });
    await learned.written();
    expect(await readFile(join(directory, 'learned.json'), 'utf8')).not.toContain('secretsecret');
  });

  test('survives a policy that a running server takes over, a warm-up image for one', async () => {
    learned.configure(model);
    learned.loaded(model.id, { tookMs: 1, heldMiB: 7_000 });
    await learned.written();
    const next = await open([{ ...model, warmsUp: !model.warmsUp, pin: true }]);
    expect(next.of(model.id).loadedMiB).toBe(7_000);
  });

  test.each(['', '{', '{"version":2,"models":{}}', '{"version":1,"models":{"test/a":{"loadedMiB":-1}}}', '[]'])(
    'survives %j as its file: that is moved aside',
    async (text) => {
      await writeFile(join(directory, 'learned.json'), text);
      const next = await open();
      expect(next.of(model.id).loadedMiB).toBeNull();
      expect((await readdir(directory)).filter((name) => name.startsWith('learned.json.corrupt-'))).toHaveLength(1);
      next.loaded(model.id, { tookMs: 1, heldMiB: 7_000 });
      await next.written();
      expect((await open()).of(model.id).loadedMiB).toBe(7_000);
    },
  );

  test('of a model that was not configured for a season is dropped, and of one that just left is kept', async () => {
    const entry = (atMs: number) => ({
      ...{ launch: null, atMs, loadedMiB: 5, offloadedMiB: null, peaks: [], loadsMs: [], wakesMs: [], service: null },
    });
    const models = { 'old/gone': entry(1), 'new/gone': entry(Date.now() - 1_000), [model.id]: entry(1) };
    await writeFile(join(directory, 'learned.json'), JSON.stringify({ version: 1, models }));
    const next = await open();
    expect(['old/gone', 'new/gone', model.id].map((id) => next.of(id).loadedMiB)).toEqual([null, 5, 5]);
  });
});

describe('a job that ran out of memory', () => {
  const need = (megapixels: number): number => peakMiB(learned.of(model.id), { ...model, megapixels });

  test('raises what its size and every larger one needs, but no smaller one', () => {
    learned.peak(model.id, { megapixels: 1, peakMiB: 9_000 });
    learned.ranShort(model.id, { megapixels: 2, aboveMiB: 24_000 });
    expect(need(1)).toBe(9_000);
    expect(need(2)).toBeGreaterThan(24_000);
    expect(need(4)).toBeGreaterThan(24_000);
  });

  test('as a small one, whose sizes are told apart more finely, speaks for the larger ones too', () => {
    learned.ranShort(model.id, { megapixels: 0.25, aboveMiB: 24_000 });
    expect(need(0.19)).toBeGreaterThan(24_000);
    expect(need(0.18)).toBeLessThan(13_000);
    expect(need(0.3)).toBeGreaterThan(24_000);
  });

  test('says nothing of the next process', () => {
    learned.ranShort(model.id, { megapixels: 1, aboveMiB: 24_000 });
    expect(need(1)).toBeGreaterThan(24_000);
    learned.loaded(model.id, { tookMs: 1_000, heldMiB: 8_000 });
    expect(need(1)).toBeLessThan(13_000);
  });

  test('is contradicted by one of its size or a larger one that had enough', () => {
    learned.ranShort(model.id, { megapixels: 1, aboveMiB: 20_000 });
    learned.ranShort(model.id, { megapixels: 4, aboveMiB: 24_000 });
    learned.peak(model.id, { megapixels: 2, peakMiB: 12_000 });
    expect(need(1)).toBeLessThan(13_000);
    expect(need(4)).toBeGreaterThan(24_000);
  });
});

describe('the deadline of a job', () => {
  const common = { estimateMs: 10_000, floorMs: 60_000, limitMs: 86_400_000, isFirst: false };
  test.each([
    ['is generous while little is known', { ratios: [1, 1, 1, 1] }, 600_000],
    ['is generous in proportion for long jobs', { ratios: [], estimateMs: 100_000 }, 1_000_000],
    ['never falls below the floor', { ratios: [1, 1, 1, 1, 1] }, 60_000],
    ['is three times what all but one in twenty took', { ratios: [1, 1, 2, 1, 4], estimateMs: 30_000 }, 360_000],
    ['is never longer than what was set as the limit', { ratios: [], limitMs: 300_000 }, 300_000],
    ['may be limited to less than the floor', { ratios: [1, 1, 1, 1, 1], limitMs: 5_000 }, 5_000],
    ['is generous for the first job after a load', { ratios: [1, 1, 1, 1, 1], isFirst: true }, 600_000],
  ])('%s', (_, more, expected) => {
    expect(jobDeadlineMs({ ...common, ...more })).toBe(expected);
  });

  test('leaves out one wild value among fifty', () => {
    const ratios = [...Array.from({ length: 49 }, () => 1), 100];
    expect(jobDeadlineMs({ ...common, ratios, estimateMs: 100_000 })).toBe(300_000);
  });
});
