import { createHash } from 'node:crypto';
import { cp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import sharp from 'sharp';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Journal } from '../../agent/job/journal.ts';
import { pause } from '../../shared/abort.ts';
import { readTextChunks } from '../../shared/png-text.ts';
import { omni, step1x } from '../agent/model/model-host.ts';
import type { ExchangeHost } from '../agent/job/exchange-host.ts';
import { jobOf, log } from '../agent/job/exchange-host.ts';
import { SimulatedServers } from '../agent/job/simulated-servers.ts';

const never = new AbortController().signal;

describe('one job', () => {
  test('offer, grant, take, progress, done: the file explains itself, and goes with the acknowledgement', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--step-ms', '100'])]);
    const { host } = servers;
    const bridge = host.bridge();
    bridge.offer('test/a');
    const grant = await bridge.grant();
    expect(grant).toMatchObject({ model: 'test/a', slotId: 'a', class: 'batch' });
    expect(grant.startsInMs).toBeGreaterThan(0);
    expect(host.exchange.slots().get('a')).toMatchObject({ phase: 'granted' });
    const job = jobOf();
    expect(await bridge.take(grant, job)).toEqual({ jobId: job.jobId, attempt: 1, state: 'accepted' });
    const { result } = await bridge.done(job.jobId);
    expect(result).toMatchObject({ width: 128, height: 96, format: 'png', gpu: 'Simulated GPU', notes: [] });
    const progress = bridge.of('job.progress');
    expect(progress.some((each) => each.state === 'accepted' && each.detail.includes('loading'))).toBe(true);
    expect(progress.some((each) => each.state === 'running')).toBe(true);

    const stored = host.results.find('token-a', job.jobId);
    const bytes = await readFile(stored?.path ?? '');
    expect(createHash('sha256').update(bytes).digest('hex')).toBe(result.sha256);
    const chunks = readTextChunks(bytes);
    const parameters = 'a red fox\nSteps: 4, CFG scale: 1, Seed: 7, Size: 128x96, Model: test/a';
    expect(chunks.find((each) => each.keyword === 'parameters')?.text).toBe(parameters);
    const own: unknown = JSON.parse(chunks.find((each) => each.keyword === 'gantry')?.text ?? '');
    expect(own).toMatchObject({ jobId: job.jobId, hostname: 'box', simulated: true, request: job.request });
    const preview = await sharp(stored?.previewPath).metadata();
    expect(preview).toMatchObject({ format: 'jpeg', width: 128, height: 96 });

    expect(bridge.session.jobs()).toEqual([{ jobId: job.jobId, attempt: 1, state: 'done', result }]);
    const wrong = bridge.session.ack({ jobId: job.jobId, attempt: 1, sha256: 'f'.repeat(64) });
    await expect(wrong).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await bridge.session.ack({ jobId: job.jobId, attempt: 1, sha256: result.sha256 });
    expect(bridge.session.jobs()).toEqual([]);
    expect(await readdir(join(host.directory, 'results', 'token-a'))).toEqual([]);
    expect(bridge.session.get(job.jobId).state).toBe('done');
    expect(servers.residency.slotFacts('a').service.samples).toBe(1);
  });

  test('a truncated answer fails the attempt as RESULT_INVALID, and the next one is fine', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--truncate', '1'])]);
    const bridge = servers.host.bridge();
    const [first, second] = [jobOf(), jobOf()];
    bridge.work([first, second]);
    expect((await bridge.failed(first.jobId)).error).toMatchObject({ code: 'RESULT_INVALID', retryable: true });
    await bridge.done(second.jobId);
    expect(bridge.session.get(first.jobId)).toMatchObject({ state: 'failed', error: { code: 'RESULT_INVALID' } });
  });

  test('an edit gets its inputs from the same token, as clean PNG', async () => {
    await using servers = await SimulatedServers.start([step1x(['--generate-ms', '50'])]);
    const { host } = servers;
    const bridge = host.bridge();
    const photo = await sharp({ create: { width: 64, height: 64, channels: 3, background: '#a00' } })
      .jpeg()
      .toBuffer();
    const sha256 = createHash('sha256').update(photo).digest('hex');
    const { width: _w, height: _h, ...request } = { ...jobOf().request, kind: 'edit' as const, model: 'test/step1x' };
    const job = jobOf({ ...request, inputs: [sha256], sizeLevel: 512, width: undefined, height: undefined } as never);
    bridge.offer('test/step1x');
    const { missingInputs } = await bridge.session.take({ grantId: (await bridge.grant()).grantId, job });
    expect(missingInputs).toEqual([sha256]);
    await host.inputs.put('token-a', sha256, Readable.from([photo]), { maxBytes: 1e6, signal: never });
    host.exchange.inputArrived('token-a', sha256);
    await bridge.done(job.jobId);
  });

  test('inputs that never come fail it as INPUT_MISSING, and the slot is free again', async () => {
    await using servers = await SimulatedServers.start([step1x()], { times: { inputSilenceMs: 100 } });
    const bridge = servers.host.bridge();
    bridge.offer('test/step1x');
    const request = { kind: 'edit', model: 'test/step1x', inputs: ['0'.repeat(64)], sizeLevel: 512 };
    const job = jobOf(request as never);
    await bridge.take(await bridge.grant(), job);
    expect((await bridge.failed(job.jobId)).error).toMatchObject({ code: 'INPUT_MISSING', retryable: true });
    expect(servers.host.exchange.slots().get('step1x')?.phase).toBe('idle');
  });
});

describe('grants', () => {
  test('a grant that nobody takes goes back, and its session gets none until it speaks', async () => {
    await using servers = await SimulatedServers.start([omni('a')], { times: { grantMs: 80 } });
    const { exchange } = servers.host;
    const [silent, other] = [servers.host.bridge('token-a'), servers.host.bridge('token-b')];
    silent.offer('test/a', { count: 3 });
    const { grantId } = await silent.grant();
    await silent.until(() => silent.of('slot.revoke').find((each) => each.grantId === grantId));
    other.offer('test/a');
    const job = jobOf();
    await other.take(await other.grant(), job);
    await other.done(job.jobId);
    expect(silent.grants).toHaveLength(1);
    await expect(silent.take({ ...silent.grants[0]! }, jobOf())).rejects.toMatchObject({ code: 'GRANT_EXPIRED' }); // see above
    silent.session.touch();
    expect((await silent.grant(2)).model).toBe('test/a');
    expect(exchange.slots().get('a')?.phase).toBe('granted');
  });

  test('none while the host drains, none for a token over its quota', async () => {
    await using servers = await SimulatedServers.start([omni('a')], { quotaBytes: 1 });
    const { exchange } = servers.host;
    const [full, other] = [servers.host.bridge('token-a'), servers.host.bridge('token-b')];
    const job = jobOf();
    full.work([job]);
    const { result } = await full.done(job.jobId);
    full.offer('test/a');
    expect(full.grants).toHaveLength(1);
    await exchange.drain();
    other.offer('test/a');
    expect(other.grants).toHaveLength(0);
    const reason = 'The host is draining: `gantry-agent resume` there, or `gantry resume HOST` on a laptop, ends that.';
    expect(exchange.slots().get('a')).toMatchObject({ phase: 'cannot', reason });
    await exchange.resume();
    other.session.decline((await other.grant()).grantId);
    expect(full.grants).toHaveLength(1);
    await full.session.ack({ jobId: job.jobId, attempt: 1, sha256: result.sha256 });
    await full.grant(2);
  });
});

describe('cancel', () => {
  test('of a running job: at once for the bridge, the slot is busy until the engine ends, nothing is kept', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '500'])]);
    const { host } = servers;
    const bridge = host.bridge();
    const job = jobOf();
    bridge.work([job]);
    await bridge.until(() => bridge.of('job.progress').find((each) => each.state === 'running'));
    expect((await bridge.session.cancel(job.jobId)).state).toBe('cancelled');
    expect(bridge.of('job.cancelled')).toEqual([{ jobId: job.jobId, attempt: 1 }]);
    expect(host.exchange.slots().get('a')).toMatchObject({ phase: 'running', isCancelled: true });
    const next = jobOf();
    bridge.work([next]); // begins when the engine is free
    await bridge.done(next.jobId);
    expect(bridge.of('job.done').map((each) => each.jobId)).toEqual([next.jobId]);
    expect(host.results.find('token-a', job.jobId)).toBeUndefined();
    expect(bridge.session.get(job.jobId).state).toBe('cancelled');
  });

  test('of a job whose model is still loading ends it, and frees the slot', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--load-ms', '600'])]);
    const { host } = servers;
    const bridge = host.bridge();
    const job = jobOf();
    bridge.work([job]);
    await bridge.until(() => bridge.of('job.progress').find((each) => each.detail.includes('loading')));
    expect((await bridge.session.cancel(job.jobId)).state).toBe('cancelled');
    await expect.poll(() => host.exchange.slots().get('a')?.phase).toBe('idle');
    const next = jobOf();
    bridge.work([next]);
    await bridge.done(next.jobId);
  });
});

describe('ends', () => {
  test('a shutdown lets the running job end within its grace', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '300'])]);
    const bridge = servers.host.bridge();
    const job = jobOf();
    bridge.work([job, jobOf()]);
    await bridge.until(() => bridge.of('job.progress').find((each) => each.state === 'running'));
    await servers.host.exchange.shutdown({ jobGraceMs: 5_000 });
    expect(bridge.of('job.done').map((each) => each.jobId)).toEqual([job.jobId]);
    expect(bridge.grants).toHaveLength(1);
    expect(servers.host.exchange.isDraining).toBe(true);
  });

  test('what does not end in time, and what has not begun, is INTERRUPTED', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '5000'])]);
    const bridge = servers.host.bridge();
    const job = jobOf();
    bridge.work([job]);
    await bridge.until(() => bridge.of('job.progress').find((each) => each.state === 'running'));
    await servers.host.exchange.shutdown({ jobGraceMs: 50 });
    expect(bridge.of('job.failed')).toMatchObject([
      { jobId: job.jobId, error: { code: 'INTERRUPTED', retryable: true } },
    ]);
  });

  test('after a crash, what was accepted is INTERRUPTED and what was done is still there', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '200'])]);
    const { host } = servers;
    const bridge = host.bridge();
    const [done, running] = [jobOf(), jobOf()];
    bridge.work([done, running]);
    const { result } = await bridge.done(done.jobId);
    await bridge.until(() => bridge.of('job.progress').find((each) => each.jobId === running.jobId));
    const crashed = join(tmpdir(), `gantry-crashed-${running.jobId}`);
    await cp(host.directory, crashed, { recursive: true }); // what a power cut at this moment leaves
    await using journal = await Journal.open({ dir: crashed, log });
    expect(journal.find('token-a', done.jobId, 1)?.end).toMatchObject({ state: 'done', result });
    expect(journal.find('token-a', running.jobId, 1)?.end).toMatchObject({ error: { code: 'INTERRUPTED' } });
    await rm(crashed, { recursive: true });
  });
});

describe('several bridges', () => {
  test('that want two models of one GPU both make progress', async () => {
    const big = ['--weights-mib', '14000', '--generate-ms', '30'];
    await using servers = await SimulatedServers.start([omni('a', big), omni('b', big)], { times: { turnMs: 300 } });
    const { host } = servers;
    const bridges = ['a', 'b'].map((alias) => ({ alias, bridge: host.bridge(`token-${alias}`) }));
    const jobs = bridges.map(({ alias, bridge }) => {
      const list = Array.from({ length: 6 }, () => jobOf({ model: `test/${alias}` }));
      bridge.work(list, 60);
      return list;
    });
    for (const [at, { bridge }] of bridges.entries()) {
      for (const job of jobs[at] ?? []) await bridge.done(job.jobId);
    }
    const moves = servers.residency.modelStatus().map(({ loads }) => loads);
    expect(Math.max(...moves)).toBeLessThanOrEqual(4);
  }, 120_000);

  test('a grant ahead of the end of a job begins no new turn: the other model is due when the first turn is over', async () => {
    const big = ['--weights-mib', '14000', '--generate-ms', '100'];
    await using servers = await SimulatedServers.start([omni('a', big), omni('b', big)], { times: { turnMs: 300 } });
    const { host } = servers;
    await host.exchange.move('test/b', 'load', never); // now it is known how long that takes
    const [first, second] = [host.bridge('token-a'), host.bridge('token-b')];
    const jobs = Array.from({ length: 300 }, () => jobOf());
    first.work(jobs);
    await first.done(jobs[2]?.jobId ?? '');
    const waits = jobOf({ model: 'test/b' });
    second.work([waits]);
    await second.until(() => second.of('job.done').find(({ jobId }) => jobId === waits.jobId), 20_000);
    const ahead = first.grants.filter(({ startsInMs }) => startsInMs > 0 && startsInMs < 100);
    expect(ahead.length).toBeGreaterThan(0);
    expect(first.of('job.done').length).toBeLessThan(jobs.length);
  }, 120_000);

  test('a load by hand waits for its turn among the jobs, then has its slot', async () => {
    const big = ['--weights-mib', '14000', '--generate-ms', '100'];
    await using servers = await SimulatedServers.start([omni('a', big), omni('b', big)], { times: { turnMs: 300 } });
    const { host } = servers;
    await host.exchange.move('test/b', 'load', never); // now it is known how long that takes
    const bridge = host.bridge();
    // More work than a turn, which is three swaps long: how long one takes depends on this machine.
    const jobs = Array.from({ length: 60 }, () => jobOf());
    bridge.work(jobs);
    await bridge.done(jobs[0]?.jobId ?? '');
    const moved = await host.exchange.move('test/b', 'load', never);
    expect(moved).toMatchObject({ state: 'ready' });
    expect(bridge.of('job.done').length).toBeLessThan(jobs.length);
  }, 120_000);

  test('a model that a person sends away gets no more batch jobs, and leaves', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '100'])]);
    const { host } = servers;
    const bridge = host.bridge();
    bridge.work(Array.from({ length: 20 }, () => jobOf()));
    await bridge.until(() => bridge.of('job.done')[1]);
    const moved = await host.exchange.move('a', 'release', never); // the alias is as good as the id
    expect(moved).toMatchObject({ state: 'released', done: 'release' });
    const before = bridge.grants.length;
    host.exchange.kick();
    await pause(50, never);
    expect(bridge.grants).toHaveLength(before);
    const urgent = jobOf({}, { class: 'interactive' });
    const person = host.bridge('token-b');
    person.work([urgent]);
    await person.done(urgent.jobId);
  });
});

describe('on a host with a ready model', () => {
  let servers: SimulatedServers;
  let host: ExchangeHost;
  let tokens = 0;
  let token = '';

  beforeAll(async () => {
    servers = await SimulatedServers.start([omni('a')]);
    host = servers.host;
    const bridge = host.bridge();
    const job = jobOf();
    bridge.work([job]);
    await bridge.done(job.jobId);
  });
  afterEach(() => host.closeBridges());
  afterAll(async () => await servers[Symbol.asyncDispose]());
  beforeEach(() => {
    token = `mine-${(tokens += 1)}`;
  });

  test.each(['jpg', 'webp'] as const)('an image as %s', async (format) => {
    const bridge = host.bridge(token);
    const job = jobOf({ format });
    bridge.work([job]);
    const { result } = await bridge.done(job.jobId);
    const stored = host.results.find(token, job.jobId);
    expect([result.format, stored?.format]).toEqual([format, format]);
    expect((await sharp(stored?.path).metadata()).format).toBe(format === 'jpg' ? 'jpeg' : 'webp');
  });

  test('a negative prompt is named in the file where there is one', async () => {
    const bridge = host.bridge(token);
    const [blank, some] = [jobOf({ negativePrompt: ' ' }), jobOf({ negativePrompt: 'fog' })];
    bridge.work([blank, some]);
    const texts = [];
    for (const { jobId } of [blank, some]) {
      await bridge.done(jobId);
      const chunks = readTextChunks(await readFile(host.results.find(token, jobId)?.path ?? ''));
      texts.push(chunks.find((each) => each.keyword === 'parameters')?.text);
    }
    expect(texts[0]).not.toContain('Negative prompt');
    expect(texts[1]).toContain('\nNegative prompt: fog\n');
  });

  test('a declined line is granted again only when it is sent again', async () => {
    const bridge = host.bridge(token);
    bridge.offer('test/a');
    bridge.session.decline((await bridge.grant()).grantId);
    host.exchange.kick();
    await pause(50, never); // the choice comes a few milliseconds after what calls for it
    expect(bridge.grants).toHaveLength(1);
    expect(host.exchange.slots().get('a')?.phase).toBe('idle');
    bridge.offer('test/a');
    await bridge.grant(2);
  });

  test('grants and offers end with their session; the jobs it had accepted run on for the token', async () => {
    const [first, second] = [host.bridge(token), host.bridge(token)];
    const job = jobOf();
    first.offer('test/a', { count: 2 });
    await first.take(await first.grant(), job);
    first.session.close();
    expect(host.exchange.offered()).toEqual([]);
    await second.done(job.jobId);
    expect(second.session.jobs()).toHaveLength(1);
  });

  test('an offer that was on its way when its session ended is not kept', async () => {
    const bridge = host.bridge(token);
    bridge.session.close();
    bridge.offer('test/a');
    expect(host.exchange.offered()).toEqual([]);
    await expect(bridge.session.take({ grantId: token, job: jobOf() })).rejects.toMatchObject({
      code: 'GRANT_EXPIRED',
    });
  });

  test('a hello has room for what is under way, however much was never acknowledged', async () => {
    const bridge = host.bridge(token);
    const error = { code: 'ENGINE_FAILED', message: 'x'.repeat(2_000), retryable: true };
    for (let n = 0; n < 500; n += 1) {
      const old = jobOf();
      void host.journal.taken(token, old);
      await host.journal.ended(token, old, { state: 'failed', error });
    }
    const job = jobOf();
    bridge.offer('test/a');
    await bridge.take(await bridge.grant(), job);
    const jobs = bridge.session.jobs();
    expect(jobs[0]?.jobId).toBe(job.jobId);
    expect(JSON.stringify(jobs).length).toBeLessThan(900_000);
    await bridge.done(job.jobId);
  });

  test('a newer session of the same bridge ends the older one', async () => {
    const older = host.bridge(token, '11111111-1111-4111-8111-111111111111');
    older.offer('test/a');
    const { grantId } = await older.grant();
    const newer = host.bridge(token, '11111111-1111-4111-8111-111111111111');
    expect(older.isReplaced).toBe(true);
    await expect(newer.session.take({ grantId, job: jobOf() })).rejects.toMatchObject({ code: 'GRANT_EXPIRED' });
    expect(host.exchange.slots().get('a')?.phase).toBe('idle');
  });

  test('a job that does not fit its grant is refused, and the grant goes back', async () => {
    const bridge = host.bridge(token);
    bridge.offer('test/a');
    const wrongModel = bridge.take(await bridge.grant(), jobOf({ model: 'test/b' }));
    await expect(wrongModel).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    bridge.offer('test/a');
    const wrongKind = bridge.take(await bridge.grant(2), jobOf({ kind: 'edit', inputs: ['0'.repeat(64)] } as never));
    await expect(wrongKind).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(host.exchange.slots().get('a')?.phase).toBe('idle');
  });

  test('a repeated key gets its present state; other parameters are a conflict; another token knows nothing', async () => {
    const [mine, other] = [host.bridge(token), host.bridge('token-b')];
    const job = jobOf();
    mine.offer('test/a', { count: 2 });
    const grant = await mine.grant();
    const both = await Promise.all([mine.take(grant, job), mine.take(grant, job)]);
    expect(both.map((each) => each.state)).toEqual(['accepted', 'accepted']);
    const changed = { ...job, request: { ...job.request, seed: 8 } };
    await expect(mine.take(grant, changed)).rejects.toMatchObject({ code: 'JOB_CONFLICT' });
    await mine.done(job.jobId);
    expect((await mine.take(grant, job)).state).toBe('done');
    expect(() => other.session.get(job.jobId)).toThrow(expect.objectContaining({ code: 'JOB_NOT_FOUND' }) as Error);
    await expect(other.session.cancel(job.jobId)).rejects.toMatchObject({ code: 'JOB_NOT_FOUND' });
    await expect(other.session.ack({ jobId: job.jobId, attempt: 1 })).rejects.toMatchObject({ code: 'JOB_NOT_FOUND' });
    expect([other.session.jobs(), other.notifications]).toEqual([[], []]);
    expect(host.results.find('token-b', job.jobId)).toBeUndefined();
  });

  test('after done: done wins', async () => {
    const bridge = host.bridge(token);
    const job = jobOf();
    bridge.work([job]);
    await bridge.done(job.jobId);
    expect((await bridge.session.cancel(job.jobId)).state).toBe('done');
  });

  test('a revoked token loses everything', async () => {
    const bridge = host.bridge(token);
    const job = jobOf();
    bridge.work([job]);
    await bridge.done(job.jobId);
    await host.exchange.forget(token);
    expect(host.results.find(token, job.jobId)).toBeUndefined();
    expect(host.bridge(token).session.jobs()).toEqual([]);
  });

  test('a result that cannot be stored fails the attempt as DISK_FULL, and the host goes on', async () => {
    const bridge = host.bridge(token);
    const [lost, next] = [jobOf(), jobOf()];
    const inTheWay = join(host.directory, 'results', token);
    await writeFile(inTheWay, 'a file where a directory is needed');
    bridge.work([lost]);
    expect((await bridge.failed(lost.jobId)).error).toMatchObject({ code: 'DISK_FULL', retryable: true });
    await rm(inTheWay);
    bridge.work([next]);
    await bridge.done(next.jobId);
  });

  test('twenty jobs one after another: each once, in order, and progress at most four times a second', async () => {
    const bridge = host.bridge(token);
    const jobs = Array.from({ length: 20 }, () => jobOf());
    const startMs = performance.now();
    bridge.work(jobs, 60);
    for (const job of jobs) await bridge.done(job.jobId);
    expect(bridge.of('job.done').map((each) => each.jobId)).toEqual(jobs.map((job) => job.jobId));
    expect(bridge.of('job.failed')).toEqual([]);
    const seconds = (performance.now() - startMs) / 1_000;
    expect(bridge.of('job.progress').length).toBeLessThanOrEqual(20 + 4 * seconds); // one at each start
    expect(host.exchange.slots().get('a')).toMatchObject({ phase: 'idle', freeInMs: 0 });
  });

  test('a full disk refuses a take, delays no cancel, and lets an acknowledgement make room', async () => {
    const bridge = host.bridge(token);
    const [done, running] = [jobOf(), jobOf()];
    bridge.work([done, running]);
    await bridge.done(done.jobId);
    bridge.offer('test/a');
    await bridge.until(() => bridge.of('job.progress').find((each) => each.jobId === running.jobId));
    await host.journal[Symbol.asyncDispose](); // from here on every line is refused
    expect((await bridge.session.cancel(running.jobId)).state).toBe('cancelled');
    const grant = bridge.grants[2];
    if (grant !== undefined) await expect(bridge.take(grant, jobOf())).rejects.toMatchObject({ code: 'DISK_FULL' });
    await bridge.session.ack({ jobId: done.jobId, attempt: 1 }); // counts at once; its line waits for the disk
    await expect.poll(() => host.results.find(token, done.jobId)).toBeUndefined();
    await expect.poll(() => host.exchange.slots().get('a')?.phase).toBe('cannot');
    expect(host.exchange.refusal).toMatch(/cannot write/);
    expect(bridge.session.get(running.jobId).state).toBe('cancelled');
  });
});
