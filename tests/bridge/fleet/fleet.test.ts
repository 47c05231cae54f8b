import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { expect, test } from 'vitest';
import { Fleet } from '../../../bridge/fleet/fleet.ts';
import { pause } from '../../../shared/abort.ts';
import type { JobRequest } from '../../../shared/job.ts';
import { gpu, MODEL, request } from './builders.ts';
import { ended, Laptop, log, opened, TIMES, until } from './fleet-fixture.ts';
import { ScriptedAgent } from './scripted-agent.ts';

const failure = (code: string, retryable = true) => ({ error: { code, message: `It was ${code}.`, retryable } });

/** Two hosts, and how many of them worked at the same time. */
class TwoAtWork implements AsyncDisposable {
  readonly agents: ScriptedAgent[] = [];
  most = 0;

  static async start(): Promise<TwoAtWork> {
    const two = new TwoAtWork();
    const fail = (): undefined => {
      const busy = two.agents.filter(({ runningJob }) => runningJob !== undefined);
      two.most = Math.max(two.most, busy.length);
    };
    for (const name of ['a', 'b']) two.agents.push(await ScriptedAgent.start(name, { runMs: 400, fail }));
    return two;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.agents.map((agent) => agent[Symbol.asyncDispose]()));
  }
}

test('a batch becomes files, previews, acknowledgements and a report of its quality', async () => {
  await using agent = await ScriptedAgent.start('gpu-a', { runMs: 20 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([agent]));
  const batch = await fleet.start(laptop.order(4));
  const view = await ended(batch);
  expect(view).toMatchObject({ state: 'success', completed: 4, failed: 0, total: 4, etaMs: 0, isOurs: true });
  expect(await laptop.files()).toEqual(['image-0.png', 'image-1.png', 'image-2.png', 'image-3.png']);
  for (const job of view.jobs) {
    expect(job).toMatchObject({ state: 'done', host: 'gpu-a', attempt: 1 });
    expect(job.routing).toMatch(/^gpu-a is the only host that can run it now: ready in about/);
    const sha256 = createHash('sha256')
      .update(await readFile(job.filePath ?? ''))
      .digest('hex');
    expect(sha256).toBe(job.result?.sha256);
    expect((await stat(job.previewPath ?? '')).size).toBeGreaterThan(0);
  }
  expect(view.quality?.jobsByHost).toEqual({ 'gpu-a': 4 });
  expect(view.quality?.lowerBoundMs).toBeCloseTo(80, 0);
  expect(view.quality?.ratio).toBeGreaterThan(1);
  await agent.until(() => agent.jobs.size === 0);
  await agent.until(() => agent.offer.length === 0);
});

test('the same batch is seen by another process, which cannot resume it but can cancel it', async () => {
  await using agent = await ScriptedAgent.start('gpu-a', { isManual: true });
  await using laptop = await Laptop.create();
  const ours = await opened(laptop.fleet([agent]));
  const batch = await ours.start(laptop.order(20));
  const theirs = laptop.fleet([]);
  theirs.open();
  const work = { model: MODEL, class: 'batch' as const };
  await agent.until(() => agent.offer.length > 0);
  agent.grantNow(work);
  await until(() => theirs.find(batch.id)?.completed === 1, 'one image is seen');
  agent.script.runMs = 3_600_000;
  agent.grantNow(work);
  await until(() => batch.view().jobs.some(({ state }) => state === 'running'), 'the next one is under way');
  const seen = theirs.find(batch.view().jobs[3]?.jobId ?? '');
  expect(seen).toMatchObject({ batchId: batch.id, state: 'running', isOurs: false, total: 20 });
  expect(theirs.batch(batch.id)).toBeUndefined();
  await theirs.cancel(batch.view().jobs[19]?.jobId ?? '');
  await until(() => batch.view().cancelled === 1, 'one job is cancelled');
  expect(batch.view().jobs[19]?.state).toBe('cancelled');
  await theirs.cancel(batch.id);
  const view = await ended(batch);
  expect(view.state).toBe('cancelled');
  expect(await laptop.files()).toHaveLength(view.completed);
  await until(() => theirs.find(batch.id)?.state === 'cancelled', 'its end is seen');
});

test('jobs go to the hosts by their speed', async () => {
  await using fast = await ScriptedAgent.start('fast', { runMs: 40 });
  await using slow = await ScriptedAgent.start('slow', { runMs: 20_000 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([slow, fast]));
  const view = await ended(await fleet.start(laptop.order(6)));
  expect(view.state).toBe('success');
  expect(view.quality?.jobsByHost).toEqual({ fast: 6 });
  expect(slow.count('slot.decline')).toBeGreaterThan(0);
  expect(view.jobs[0]?.routing).toMatch(
    /^fast is expected to be fastest: ready in about [\d.]+ s; slow in about [\d.]+ s/,
  );
});

test('a pinned batch goes to its host only, and max_concurrent holds over all hosts', async () => {
  await using two = await TwoAtWork.start();
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet(two.agents));
  await ended(await fleet.start(laptop.order(4)));
  expect(two.most).toBe(2);
  const pinned = await ended(await fleet.start(laptop.order(4, { host: 'b' })));
  expect(pinned.quality?.jobsByHost).toEqual({ b: 4 });
  expect(pinned.jobs[0]?.routing).toMatch(/^b was asked for: ready in about/);
  two.most = 0;
  await ended(await fleet.start(laptop.order(6, { maxConcurrent: 1 })));
  expect(two.most).toBe(1);
});

test('so many at a time as the configuration says, unless the batch says its own number', async () => {
  await using two = await TwoAtWork.start();
  await using laptop = await Laptop.create();
  await using fleet = new Fleet({
    hosts: two.agents.map(({ config }) => config),
    bridgeId: randomUUID(),
    clientName: () => 'test',
    stateDir: laptop.directory,
    times: TIMES,
    log,
    maxConcurrent: 1,
  });
  await opened(fleet);
  await ended(await fleet.start(laptop.order(4)));
  expect(two.most).toBe(1);
  await ended(await fleet.start(laptop.order(4, { maxConcurrent: 2 })));
  expect(two.most).toBe(2);
});

test('a retryable failure is tried again, at most three times, and the others are done', async () => {
  await using a = await ScriptedAgent.start('a', {
    fail: ({ request: { seed } }) => (seed === 1 ? failure('ENGINE_FAILED') : undefined),
  });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const view = await ended(await fleet.start(laptop.order(3)));
  expect(view).toMatchObject({ state: 'partial', completed: 2, failed: 1 });
  expect(view.jobs[1]).toMatchObject({ state: 'failed', attempt: 3, error: { code: 'ENGINE_FAILED' } });
  expect(view.jobs[1]?.attempts.map(({ host, error }) => [host, error?.code])).toEqual(
    Array(3).fill(['a', 'ENGINE_FAILED']),
  );
  await a.until(() => a.jobs.size === 0);
});

test('what cannot be retried fails at once', async () => {
  await using a = await ScriptedAgent.start('a', { fail: () => failure('INPUT_INVALID', false) });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const view = await ended(await fleet.start(laptop.order(1)));
  expect(view).toMatchObject({ state: 'failed', jobs: [{ attempt: 1, error: { code: 'INPUT_INVALID' } }] });
});

test('a job that kills two servers is quarantined, on two hosts where there are two', async () => {
  const fail = ({ request: { seed } }: { request: JobRequest }) => (seed === 0 ? failure('MODEL_FAILED') : undefined);
  await using a = await ScriptedAgent.start('a', { fail });
  await using b = await ScriptedAgent.start('b', { fail });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a, b]));
  const view = await ended(await fleet.start(laptop.order(4)));
  expect(view).toMatchObject({ state: 'partial', completed: 3, failed: 1 });
  expect(view.jobs[0]?.error?.code).toBe('QUARANTINED');
  expect(new Set(view.jobs[0]?.attempts.map(({ host }) => host))).toEqual(new Set(['a', 'b']));
});

test('a refused take waits and comes back; one that never can be is failed', async () => {
  let refusals = 0;
  await using a = await ScriptedAgent.start('a', {
    refuse: ({ request: { seed } }) => {
      if (seed === 1) return 'JOB_CONFLICT';
      refusals += 1;
      return refusals === 1 ? 'GRANT_EXPIRED' : undefined;
    },
  });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const view = await ended(await fleet.start(laptop.order(2)));
  expect(view.jobs.map(({ state }) => state)).toEqual(['done', 'failed']);
  expect(view.jobs[0]?.attempt).toBe(1);
  expect(view.jobs[1]?.error?.code).toBe('JOB_CONFLICT');
});

test('the inputs of an edit are sent where they are missing', async () => {
  await using laptop = await Laptop.create();
  const bytes = Buffer.from('pixels');
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const path = join(laptop.directory, 'input.png');
  await writeFile(path, bytes);
  await using a = await ScriptedAgent.start('a', { snap: {} });
  const { width, height, ...rest } = request();
  expect(width).toBe(height);
  const edit: JobRequest = { ...rest, kind: 'edit', inputs: [sha256] };
  const fleet = await opened(laptop.fleet([a]));
  const order = laptop.order([edit], { class: 'interactive' });
  const jobs = order.jobs.map((job) => ({ ...job, inputFiles: [path] }));
  const view = await ended(await fleet.start({ ...order, kind: 'generate', jobs }));
  expect(view.state).toBe('success');
  expect(a.uploads.get(sha256)).toEqual(bytes);
});

test('a lost link makes jobs unsure, and the next hello tells: nothing is done twice', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 300 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const batch = await fleet.start(laptop.order(2));
  await a.until(() => [...a.jobs.values()].some(({ state }) => state === 'running'));
  a.dropLink();
  await until(() => batch.view().jobs.some(({ state }) => state === 'unsure'), 'unsure');
  const view = await ended(batch);
  expect(view.state).toBe('success');
  expect(view.jobs.map(({ attempt }) => attempt)).toEqual([1, 1]);
  expect(a.count('job.take')).toBe(2);
});

test('an agent that was restarted reports INTERRUPTED, and the job is done once', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 200 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const batch = await fleet.start(laptop.order(2));
  await a.until(() => a.runningJob !== undefined);
  a.restart();
  const view = await ended(batch);
  expect(view.state).toBe('success');
  expect(view.jobs.map(({ attempt }) => attempt).sort()).toEqual([1, 2]);
  expect(await laptop.files()).toEqual(['image-0.png', 'image-1.png']);
});

test('a silent host: its job is done elsewhere, and what it has later is dropped unseen', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 30 });
  await using b = await ScriptedAgent.start('b', { runMs: 3_000 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a, b]));
  const slow = await fleet.start(laptop.order(1, { host: 'b' }));
  await until(() => slow.view().jobs[0]?.state === 'running', 'running');
  await slow.cancel();
  expect(slow.view().jobs[0]).toMatchObject({ state: 'cancelled', stillRunningOn: 'b' });

  b.script.runMs = 1_200;
  await b.until(() => b.runningJob === undefined);
  a.refuseWith = 503;
  a.dropLink();
  const batch = await fleet.start(laptop.order(1));
  await b.until(() => b.runningJob !== undefined);
  b.refuseWith = 503;
  b.dropLink();
  a.refuseWith = undefined;
  await until(() => batch.view().jobs[0]?.state === 'unsure', 'unsure');
  const view = await ended(batch);
  expect(view.jobs[0]).toMatchObject({ state: 'done', host: 'a', attempt: 2 });
  expect(view.jobs[0]?.attempts.map(({ host }) => host)).toEqual(['b', 'a']);
  await b.until(() => b.runningJob === undefined);
  b.refuseWith = undefined;
  await b.until(() => b.jobs.size === 0);
  expect(await laptop.files()).toEqual(['image-0.png']);
});

test('a laptop that slept gives every host the whole silence again before its job is taken elsewhere', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 30 });
  await using b = await ScriptedAgent.start('b', { runMs: 3_000 });
  await using laptop = await Laptop.create();
  const silenceMs = 1_500;
  const fleet = await opened(laptop.fleet([a, b], { silenceMs }));
  a.refuseWith = 503;
  a.dropLink();
  const batch = await fleet.start(laptop.order(1));
  await b.until(() => b.runningJob !== undefined);
  b.refuseWith = 503;
  b.dropLink();
  a.refuseWith = undefined;
  await until(() => batch.view().jobs[0]?.state === 'unsure', 'unsure');
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, silenceMs + 200); // nothing here runs, as in a sleep
  await pause(silenceMs / 4, new AbortController().signal); // its network takes a while
  b.refuseWith = undefined;
  const view = await ended(batch);
  expect(view.jobs[0]?.attempts.map(({ host }) => host)).toEqual(['b']);
  expect(a.count('job.take')).toBe(0);
});

test('a killed bridge: the next one goes on, and redoes nothing that is done', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 60 });
  await using laptop = await Laptop.create();
  const first = await opened(laptop.fleet([a]));
  const batch = await first.start(laptop.order(6));
  await until(() => batch.view().completed >= 2, 'two are done');
  const waiting = batch.wait(new AbortController().signal);
  const startedMs = performance.now();
  await Promise.all([first.detach(), expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED' })]);
  expect(performance.now() - startedMs).toBeLessThan(20_000);
  const second = await opened(laptop.fleet([a]));
  await until(() => second.batch(batch.id) !== undefined, 'resumed');
  const resumed = second.batch(batch.id);
  if (resumed === undefined) throw new Error('it is there');
  const view = await ended(resumed);
  expect(view).toMatchObject({ state: 'success', completed: 6 });
  expect(a.count('job.take')).toBe(6);
  expect(await laptop.files()).toHaveLength(6);
  await a.until(() => a.jobs.size === 0);
});

test('a file of a saving line counts as saved, and is only acknowledged', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 20 });
  await using laptop = await Laptop.create();
  const first = await opened(laptop.fleet([a]));
  const batch = await first.start(laptop.order(2));
  await ended(batch);
  await first.detach();
  // As after a crash between the link and the `saved` line of the last image, whose result is still on the host.
  const path = join(laptop.directory, 'batches', batch.id, 'manifest.jsonl');
  const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
  const cut = lines.slice(
    0,
    lines.findLastIndex((line) => line.includes('"type":"saved"')),
  );
  await writeFile(path, `${cut.join('\n')}\n{"type":"sav`);
  const takes = a.count('job.take');
  const second = await opened(laptop.fleet([a]));
  await until(() => second.find(batch.id)?.state === 'success', 'found on the disk');
  expect(a.count('job.take')).toBe(takes);
  expect(await laptop.files()).toEqual(['image-0.png', 'image-1.png']);
});

test('a result whose acknowledgement was lost is acknowledged, also when its host said hello before the resume', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 100 });
  await using laptop = await Laptop.create();
  const first = await opened(laptop.fleet([a]));
  const batch = await first.start(laptop.order(3));
  await until(() => a.jobs.size > 0, 'the host has a job');
  const [held] = a.jobs.values();
  if (held === undefined) throw new Error('it has one');
  await until(() => batch.view().jobs.some(({ jobId, state }) => jobId === held.jobId && state === 'done'), 'saved');
  await first.detach();
  a.jobs.set(held.jobId, held); // as if the host had never heard the acknowledgement
  const second = laptop.fleet([a]);
  const helloes = a.helloes;
  second.connect();
  await a.until(() => a.helloes > helloes);
  second.open();
  await until(() => second.find(batch.id)?.state === 'success', 'the batch ends');
  await a.until(() => a.jobs.size === 0);
  expect(await laptop.files()).toHaveLength(3);
});

test('a batch whose record was damaged goes on with what is left of it, and says so', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 60 });
  await using laptop = await Laptop.create();
  const first = await opened(laptop.fleet([a]));
  const batch = await first.start(laptop.order(6));
  await until(() => batch.view().completed >= 2, 'two are done');
  await first.detach();
  const directory = join(laptop.directory, 'batches', batch.id);
  const path = join(directory, 'manifest.jsonl');
  const lost = batch.view().jobs.find(({ state }) => state === 'waiting');
  const lines = (await readFile(path, 'utf8')).split('\n');
  const damaged = lines.map((line) => (line.includes(`"job","jobId":"${lost?.jobId ?? ''}`) ? line.slice(9) : line));
  await writeFile(path, damaged.join('\n'));
  await writeFile(join(directory, 'left.jpg.part'), 'half a preview');
  const second = await opened(laptop.fleet([a]));
  await until(() => second.find(batch.id)?.state === 'partial', 'the rest is done');
  expect(second.find(batch.id)).toMatchObject({ total: 6, completed: 5, failed: 1 });
  expect(second.find(batch.id)?.notes[0]).toMatch(/^One line .* Of one image it is not known any more .*corrupt-/);
  expect(await laptop.files()).toHaveLength(5);
  expect(a.count('job.take')).toBeLessThanOrEqual(5);
  const names = await readdir(directory);
  expect(names.some((name) => name.startsWith('manifest.jsonl.corrupt-'))).toBe(true);
  expect(names).not.toContain('left.jpg.part');
});

test('a batch whose call was never answered is ended unseen, and a broken one keeps no other from going on', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 60 });
  await using laptop = await Laptop.create();
  const first = await opened(laptop.fleet([a]));
  const batches = [
    await first.start(laptop.order(2)),
    await first.start(laptop.order(2)),
    await first.start(laptop.order(2)),
  ];
  await first.detach();
  const [unanswered, broken, good] = batches.map(({ id }) => join(laptop.directory, 'batches', id, 'manifest.jsonl'));
  const [header = '', job = ''] = (await readFile(unanswered ?? '', 'utf8')).split('\n');
  await writeFile(unanswered ?? '', `${header}\n${job}\n`);
  await writeFile(broken ?? '', 'rubbish\n');
  const second = await opened(laptop.fleet([a]));
  const goodId = batches[2]?.id ?? '';
  await until(() => second.find(goodId)?.state === 'success', 'the good one is done');
  expect(second.find(batches[0]?.id ?? '')).toBeUndefined();
  expect(() => second.find(batches[1]?.id ?? '')).toThrow(/damaged .* kept as .*manifest\.jsonl\.corrupt-/);
  expect(await readFile(unanswered ?? '', 'utf8')).toMatch(/"type":"ended","state":"cancelled"/);
  expect(good).toBeDefined();
});

test('before a batch ends its whole view is handed over; a failure there is no failure of the batch', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 20 });
  await using laptop = await Laptop.create();
  const seen: { state: string; completed: number }[] = [];
  const fleet = await opened(
    laptop.fleet([a], {}, async (view) => {
      seen.push(view);
      throw new Error('no space');
    }),
  );
  const view = await ended(await fleet.start(laptop.order(2)));
  expect(view.state).toBe('success');
  expect(seen).toMatchObject([{ state: 'success', completed: 2 }]);
});

test('a broken transfer is repeated', async () => {
  await using a = await ScriptedAgent.start('a');
  a.cutResults = 1;
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const view = await ended(await fleet.start(laptop.order(1)));
  expect(view.state).toBe('success');
  expect(await laptop.files()).toEqual(['image-0.png']);
});

test('a directory that cannot be written pauses the batch until it can', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  await writeFile(laptop.output, 'in the way');
  const fleet = await opened(laptop.fleet([a]));
  const batch = await fleet.start(laptop.order(3));
  const isTold = (detail: string): boolean => /could not be saved in .* The host keeps the result/.test(detail);
  await until(() => batch.view().jobs.some(({ progress }) => isTold(progress.detail)), 'it says so');
  expect(batch.view()).toMatchObject({
    state: 'running',
    etaMs: null,
    pausedBy: expect.stringMatching(/could not be saved/) as string,
  });
  await rm(laptop.output);
  await mkdir(laptop.output, { recursive: true }); // the batch may have looked, and made it, in between
  expect(await ended(batch)).toMatchObject({ state: 'success', completed: 3 });
});

test('a waiting job knows how long it takes and how many of ours come before it', async () => {
  await using a = await ScriptedAgent.start('a', { runMs: 5_000 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const first = await fleet.start(laptop.order(3));
  await until(() => first.view().jobs[0]?.state === 'running', 'the first runs');
  const second = await fleet.start(laptop.order([request({ seed: 8 }), request({ seed: 9 })], { order: 'fifo' }));
  expect(first.view().jobs.map(({ ahead }) => ahead)).toEqual([null, 0, 1]);
  expect(second.view().jobs.map(({ ahead }) => ahead)).toEqual([2, 3]);
  const etas = [...first.view().jobs, ...second.view().jobs].map(({ etaMs }) => etaMs ?? -1);
  expect(etas).toEqual([...etas].sort((one, two) => one - two));
  expect(etas[0]).toBeGreaterThanOrEqual(0);
  expect((etas[4] ?? 0) - (etas[1] ?? 0), 'three jobs of 5 s later').toBeCloseTo(15_000, -3);
  const oneLook = second.view();
  expect(oneLook.etaMs).toBe(Math.round(oneLook.jobs[1]?.etaMs ?? 0));
  const single = await fleet.start(laptop.order(1, { class: 'interactive' }));
  expect(single.view().jobs[0]?.ahead, 'what somebody waits for goes first').toBe(0);
  await Promise.all([first, second, single].map((batch) => batch.cancel()));
});

test('all hosts down: the batch waits, says why for each, and goes on by itself', async () => {
  await using a = await ScriptedAgent.start('a');
  a.refuseWith = 503;
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const batch = await fleet.start(laptop.order(1));
  expect(batch.view().jobs[0]?.progress.detail).toMatch(
    /^No host can run acme\/painter now: a: not connected: .*HTTP 503/,
  );
  expect(batch.view().etaMs).toBeNull();
  a.refuseWith = undefined;
  expect((await ended(batch)).state).toBe('success');
});

test('what can never run is refused, with each reason', async () => {
  await using a = await ScriptedAgent.start('a', { snap: { gpus: [gpu({ totalMiB: 8_000 })] } });
  await using b = await ScriptedAgent.start('b', { model: 'acme/other' });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a, b]));
  await expect(fleet.start(laptop.order([request({ model: 'nobody/has' })]))).rejects.toMatchObject({
    code: 'MODEL_UNKNOWN',
    message: 'No host has the model nobody/has. Configured models: acme/painter, acme/other.',
  });
  await expect(fleet.start(laptop.order(1))).rejects.toMatchObject({
    code: 'NO_HOST',
    message: expect.stringMatching(/a: painter needs 29\.3 GB .* b: acme\/painter is not configured/) as string,
  });
  await expect(fleet.start(laptop.order(1, { host: 'c' }))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(laptop.fleet([]).start(laptop.order(1))).rejects.toMatchObject({ code: 'NO_HOST' });
});

test('of a batch, what fits nowhere fails with the reason of each host, and the others are done', async () => {
  const capacity = { mostMiB: 20_000, fitsMegapixels: 2, peaks: [{ megapixels: 4, peakMiB: 30_000 }] };
  await using a = await ScriptedAgent.start('a', { capacity });
  await using b = await ScriptedAgent.start('b', { capacity: { ...capacity, fitsMegapixels: 1 } });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a, b]));
  const large = request({ width: 2_000, height: 2_000, seed: 1 });
  const middle = request({ width: 1_200, height: 1_200, seed: 2 });
  const view = await ended(await fleet.start(laptop.order([request(), large, middle, request({ seed: 3 })])));
  expect(view.state).toBe('partial');
  const failed = view.jobs.filter(({ state }) => state === 'failed');
  expect(failed.map(({ index, error }) => [index, error?.code])).toEqual([[1, 'NO_HOST']]);
  expect(failed[0]?.error?.message).toMatch(
    /a: painter needs .* at 2000x2000 .*b: painter needs .* try 1\.00 megapixels/,
  );
  expect(view.jobs[2]?.host, 'it fits on this one only').toBe('a');
});

test('an unknown id is JOB_NOT_FOUND', async () => {
  await using laptop = await Laptop.create();
  const fleet = laptop.fleet([]);
  expect(fleet.find(randomUUID())).toBeUndefined();
  await expect(fleet.cancel(randomUUID())).rejects.toMatchObject({ code: 'JOB_NOT_FOUND' });
  expect(fleet.list()).toEqual([]);
  expect(MODEL).toBe('acme/painter');
});
