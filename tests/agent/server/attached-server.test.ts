import { execa } from 'execa';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, test, vi } from 'vitest';
import { answerOrUndefined } from '../../../agent/engine/engine.ts';
import { freePort } from '../../../agent/server/free-port.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import type { StageOptions } from '../model/life-stage.ts';
import { LifeStage } from '../model/life-stage.ts';
import { ModelHost, never, omni, until } from '../model/model-host.ts';

vi.setConfig({ testTimeout: 120_000 });

const failureOf = (promise: Promise<unknown>): Promise<string> => promise.then(() => 'no failure', String);

type Programs = { start?: string[]; stop?: string[] };

/** Somebody's server with the programs that start and stop it, as systemctl would. */
class Theirs implements AsyncDisposable {
  readonly directory: string;
  readonly port: number;

  private constructor(directory: string, port: number) {
    this.directory = directory;
    this.port = port;
  }

  static async open(): Promise<Theirs> {
    const theirs = new Theirs(await mkdtemp(join(tmpdir(), 'gantry-theirs-')), await freePort('127.0.0.1'));
    const { directory, port } = theirs;
    const argv = ['serve', 'their/model', '--omni', '--host', '127.0.0.1', '--port', String(port), '--load-ms', '20'];
    const server = [resolve('dist/sim/vllm-omni'), ...argv].join(' ');
    const start = `echo started >> '${directory}/calls'; setsid ${server} & echo $! > '${directory}/pid'`;
    const stop = `echo stopped >> '${directory}/calls'; kill $(cat '${directory}/pid')`;
    await writeFile(join(directory, 'start.sh'), start);
    await writeFile(join(directory, 'stop.sh'), stop);
    return theirs;
  }

  model(programs: Programs): ConfiguredModel {
    const launch = { kind: 'attached' as const, url: `http://127.0.0.1:${this.port}/`, ...programs };
    return omni('a', [], { id: 'their/model', launch });
  }

  stage(programs: Programs, more: StageOptions = {}): Promise<LifeStage> {
    return LifeStage.open({ ...more, model: this.model(programs) });
  }

  program(name: 'start' | 'stop'): string[] {
    return ['/bin/sh', join(this.directory, `${name}.sh`)];
  }

  async calls(): Promise<string[]> {
    const text = await readFile(join(this.directory, 'calls'), 'utf8').catch(() => '');
    return text.split('\n').filter(Boolean);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await execa('/bin/sh', [join(this.directory, 'stop.sh')], { reject: false });
    await rm(this.directory, { recursive: true, force: true });
  }
}

test('is started by the program that was named for it, used, and stopped by the other', async () => {
  await using theirs = await Theirs.open();
  await using stage = await theirs.stage({ start: theirs.program('start'), stop: theirs.program('stop') });
  await stage.load();
  expect(stage.life.state).toMatchObject({ kind: 'ready', server: { kind: 'attached' } });
  expect(await theirs.calls()).toEqual(['started']);
  expect(await stage.life.bury('asked')).not.toHaveProperty('error');
  expect(await theirs.calls()).toEqual(['started', 'stopped']);
  expect(await stage.life.isHealthy()).toBe(false);
  expect(stage.life.state.kind).toBe('released');
});

test('that answers already is not started, and without a stop it is never ended', async () => {
  await using theirs = await Theirs.open();
  await execa('/bin/sh', [join(theirs.directory, 'start.sh')], { stdio: 'ignore' });
  await using stage = await theirs.stage({ start: theirs.program('start') });
  await until(() => existsSync(join(theirs.directory, 'pid')));
  await vi.waitFor(async () => expect(await isUp(theirs.port)).toBe(true), { timeout: 60_000 });
  await stage.load();
  expect(await theirs.calls()).toEqual(['started']);
  await stage.life.bury('asked');
  expect(stage.life.state.kind).toBe('released');
  expect(await isUp(theirs.port)).toBe(true);
});

test('outlives the agent that had it started', async () => {
  await using theirs = await Theirs.open();
  {
    await using stage = await theirs.stage({ start: theirs.program('start'), stop: theirs.program('stop') });
    await stage.load();
  }
  expect(await isUp(theirs.port)).toBe(true);
  expect(await theirs.calls()).toEqual(['started']);
});

test('whose start fails says so, with the last lines of that program, and is tried again later', async () => {
  await using theirs = await Theirs.open();
  const start = ['/bin/sh', '-c', 'echo "Unit not found." >&2; exit 5'];
  await using stage = await theirs.stage({ start });
  expect(await failureOf(stage.load())).toMatch(/`start` of a .* exited with code 5\.[^]*Unit not found\./);
  expect(stage.life.state).toMatchObject({ kind: 'failed', retry: { atMs: expect.any(Number) as number } });
});

test('whose start does not come back is cut off, with all it started', async () => {
  await using theirs = await Theirs.open();
  const start = ['/bin/sh', '-c', `echo waiting; sleep 60 & echo $! > '${theirs.directory}/pid'; wait`];
  await using stage = await theirs.stage({ start }, { times: { startDeadlineMs: 500 } });
  expect(await failureOf(stage.load())).toMatch(/did not end within 1 s[^]*waiting/);
  const pid = Number(await readFile(join(theirs.directory, 'pid'), 'utf8'));
  expect(existsSync(`/proc/${pid}/fd/1`)).toBe(false);
});

test('that still answers after its stop is not called released', async () => {
  await using theirs = await Theirs.open();
  const programs = { start: theirs.program('start'), stop: ['true'] };
  await using stage = await theirs.stage(programs, { times: { stopGraceMs: 200 } });
  await stage.load();
  const { error } = await stage.life.bury('asked');
  expect(String(error)).toMatch(/still answers at .* after its `stop`/);
  expect(stage.life.state.kind).toBe('failed');
});

test('is stopped by the program that a reload named while it was up', async () => {
  await using theirs = await Theirs.open();
  const start = theirs.program('start');
  await using host = await ModelHost.start([theirs.model({ start })]);
  await host.move('a', 'load');
  const after = theirs.model({ start, stop: theirs.program('stop') });
  host.residency.reconfigure([after], { reserveMiB: 512, ramReserveMiB: 2_048, yieldsToForeign: false });
  expect((await host.move('a', 'release')).state).toBe('released');
  expect(await theirs.calls()).toEqual(['started', 'stopped']);
  expect(await isUp(theirs.port)).toBe(false);
});

test('that somebody else had up, as another model, is not stopped for that', async () => {
  await using theirs = await Theirs.open();
  await using owner = await theirs.stage({ start: theirs.program('start') });
  await owner.load();
  const launch = { kind: 'attached' as const, url: `http://127.0.0.1:${theirs.port}`, stop: theirs.program('stop') };
  await using stage = await LifeStage.open({ model: omni('a', [], { id: 'another/model', launch }) });
  expect(await failureOf(stage.load())).toMatch(/serves their\/model, not another\/model/);
  expect(await theirs.calls()).toEqual(['started']);
});

async function isUp(port: number): Promise<boolean> {
  const url = `http://127.0.0.1:${port}/health`;
  return (await answerOrUndefined(url, { signal: never, deadlineMs: 2_000 }))?.status === 200;
}
