import { execa } from 'execa';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { endLeftOver } from '../../../agent/server/left-over.ts';
import { ProcessTable, isAlive, readStat } from '../../../agent/server/process-table.ts';
import type { ServerRecord } from '../../../agent/server/server-records.ts';
import { eventLog, quietSampler } from '../model/life-stage.ts';
import type { Event } from '../model/life-stage.ts';
import { never, until } from '../model/model-host.ts';

/** vi.waitFor gives up after a second unless it is told otherwise. */
const PATIENT = { timeout: 60_000 };

vi.setConfig({ testTimeout: 120_000 });

const STUBBORN = 'trap "" TERM; echo up; while :; do sleep 0.05; done';

/** A directory with logs, and what an agent that starts there ends. */
class Start implements AsyncDisposable {
  readonly directory: string;
  readonly events: Event[] = [];
  readonly #pids: number[] = [];

  private constructor(directory: string) {
    this.directory = directory;
  }

  static async open(): Promise<Start> {
    return new Start(await mkdtemp(join(tmpdir(), 'gantry-left-')));
  }

  log(name: string): string {
    return join(this.directory, name);
  }

  /** A process whose parent, as its agent would be, is dead. */
  async process(log: string, { mode = 'a' }: { mode?: 'a' | 'r' } = {}): Promise<number> {
    if (mode === 'r') await writeFile(log, '');
    const file = await open(log, mode);
    const pidFile = join(this.directory, 'pid');
    await rm(pidFile, { force: true });
    const run = `echo $$ > '${pidFile}'; exec sh -c '${STUBBORN}'`;
    const child = execa('/bin/sh', ['-c', 'setsid sh -c "$1" &', 'sh', run], {
      ...{ stdio: ['ignore', file.fd as 9, 'ignore'], reject: false },
    });
    await file.close();
    await child;
    let pid = 0;
    await vi.waitFor(async () => {
      pid = Number(await readFile(pidFile, 'utf8'));
      expect(pid).toBeGreaterThan(0);
    }, PATIENT);
    this.#pids.push(pid);
    return pid;
  }

  async end(records: ServerRecord[] = []): Promise<void> {
    const { log, events } = eventLog();
    await using sampler = quietSampler();
    const times = { stopGraceMs: 200, vramBackMs: 100 };
    const table = new ProcessTable();
    await endLeftOver({
      records,
      cgroups: undefined,
      logDir: this.directory,
      table,
      sampler,
      times,
      log,
      signal: never,
    });
    this.events.push(...events);
  }

  isAlive(pid: number): boolean {
    return readStat(pid)?.isDead === false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.#pids.filter((candidate) => this.isAlive(candidate))) process.kill(pid, 'SIGKILL');
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

test('whoever writes to a server log is ended, and named, also where nothing was written down', async () => {
  await using start = await Start.open();
  const log = start.log('fox~2-20260101000000000.log');
  const pid = await start.process(log);
  await start.end();
  expect(start.isAlive(pid)).toBe(false);
  expect(start.events.find(({ event }) => event === 'server-left-over')).toMatchObject({
    slotId: 'fox~2',
    logPath: log,
    processes: expect.arrayContaining([{ pid, name: 'sh' }]) as unknown,
  });
  expect(start.events.some(({ event }) => event === 'server-forced')).toBe(true);
});

test('a crash between the spawn and the record of the pid leaves a record without a leader: the log tells', async () => {
  await using start = await Start.open();
  const logPath = start.log('fox-20260101000000000.log');
  const pid = await start.process(logPath);
  await start.end([{ slotId: 'fox', leader: null, logPath, bootId: 'now' }]);
  expect(start.isAlive(pid)).toBe(false);
  expect(start.events.filter(({ event }) => event === 'server-left-over')).toHaveLength(1);
});

test('a server of another living agent that was given the same log directory is left alone, and named', async () => {
  await using start = await Start.open();
  // Its parent lives, and is nobody that we came from.
  const file = await open(start.log('owl-20260101000000000.log'), 'a');
  const agent = execa('/bin/sh', ['-c', 'sleep 61 >&3 & exec sleep 62'], {
    ...{ stdio: ['ignore', 'ignore', 'ignore', file.fd as 9], reject: false },
  });
  await file.close();
  let server: number | undefined;
  await until(() => {
    server = new ProcessTable().read().find(({ parent, name }) => parent === agent.pid && name === 'sleep')?.pid;
    return server !== undefined;
  });
  await start.end();
  expect(start.isAlive(server ?? 0)).toBe(true);
  expect(start.events).toMatchObject([{ event: 'server-of-another-agent', pids: [server], parent: agent.pid }]);
  process.kill(server ?? NaN, 'SIGKILL');
  agent.kill('SIGKILL');
  await agent;
});

test('a person who reads a log, and a program that writes to another file, are no servers', async () => {
  await using start = await Start.open();
  const reader = await start.process(start.log('fox-20260101000000000.log'), { mode: 'r' });
  const other = await start.process(start.log('notes.log'));
  await start.end();
  expect([reader, other].map((pid) => start.isAlive(pid))).toEqual([true, true]);
  expect(start.events).toEqual([]);
});

test('a session that somebody opened later under the pid of a dead leader is left alone', async () => {
  await using start = await Start.open();
  // As daemons do: whoever opened the session has gone, and its child lives on in it.
  const opener = await execa('setsid', ['sh', '-c', 'sleep 60 >/dev/null 2>&1 & echo $$ $!']);
  const [leader = 0, stranger = 0] = opener.stdout.split(' ').map(Number);
  expect(readStat(stranger)).toMatchObject({ session: leader, isDead: false });
  const logPath = start.log('fox-20260101000000000.log');
  await start.end([{ slotId: 'fox', leader: { pid: leader, startTime: '1' }, logPath, bootId: 'now' }]);
  expect(start.isAlive(stranger)).toBe(true);
  process.kill(stranger, 'SIGKILL');
});

test('a pid that belongs to somebody else by now is left alone', async () => {
  await using start = await Start.open();
  const stranger = execa('sleep', ['30'], { reject: false });
  const leader = { pid: stranger.pid ?? 0, startTime: '1' };
  await start.end([{ slotId: 'fox', leader, logPath: start.log('fox-20260101000000000.log'), bootId: 'now' }]);
  expect(isAlive({ pid: leader.pid, startTime: readStat(leader.pid)?.startTime ?? '' })).toBe(true);
  stranger.kill('SIGKILL');
  await stranger;
});
