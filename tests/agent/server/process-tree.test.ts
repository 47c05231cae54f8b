import { execa } from 'execa';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, test, vi } from 'vitest';
import { LOG_MARK, ProcessTable, readStat, titleOf } from '../../../agent/server/process-table.ts';
import { ProcessTree } from '../../../agent/server/process-tree.ts';
import { ServerLog } from '../../../agent/server/server-log.ts';
import { ServerProcess } from '../../../agent/server/server-process.ts';
import { pause } from '../../../shared/abort.ts';
import { never, until } from '../model/model-host.ts';

vi.setConfig({ testTimeout: 120_000 });

const ENV = { PATH: '/usr/bin:/bin' };

/** A server made of shell, with its log in a directory of its own. */
class Stage implements AsyncDisposable {
  readonly directory: string;
  readonly log: ServerLog;
  readonly server: ServerProcess;

  private constructor(directory: string, log: ServerLog, server: ServerProcess) {
    this.directory = directory;
    this.log = log;
    this.server = server;
  }

  static async open(script: string): Promise<Stage> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-tree-'));
    const log = await ServerLog.create({ logDir: join(directory, 'logs'), slotId: 'a' });
    const argv = ['/bin/sh', '-c', `DIR='${directory}'\n${script}`];
    return new Stage(directory, log, await ServerProcess.start({ argv, env: ENV, log, table: new ProcessTable() }));
  }

  async until(file: string): Promise<void> {
    await until(() => existsSync(join(this.directory, file)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.stop({ graceMs: 0 });
    await rm(this.directory, { recursive: true, force: true });
  }
}

test('ends a server on SIGTERM without more', async () => {
  await using stage = await Stage.open(`trap 'echo bye; exit 3' TERM; touch "$DIR/up"; while :; do sleep 0.05; done`);
  await stage.until('up');
  expect(await stage.server.stop({ graceMs: 5_000 })).toEqual({ killed: [], survivors: [] });
  expect(await stage.server.exited).toEqual({ code: 3, signal: null });
  expect(await stage.log.lastLines()).toBe('bye');
});

test('kills a leader that ignores SIGTERM', async () => {
  await using stage = await Stage.open(`trap '' TERM; touch "$DIR/up"; while :; do sleep 0.05; done`);
  await stage.until('up');
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  expect(await stage.server.exited).toEqual({ code: null, signal: 'SIGKILL' });
});

test('finds a child in a session of its own whose parents are gone, by the log it writes', async () => {
  const orphan = `setsid sh -c 'trap "" TERM; echo $$ > "$DIR/orphan"; while :; do sleep 0.05; done' &`;
  await using stage = await Stage.open(
    `export DIR\n${orphan}\nwhile [ ! -s "$DIR/orphan" ]; do sleep 0.02; done; exit 1`,
  );
  expect(await stage.server.exited).toMatchObject({ code: 1 });
  const pid = Number(await readFile(join(stage.directory, 'orphan'), 'utf8'));
  expect(stage.server.tree()).toContain(pid);
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  expect(stage.server.tree()).toEqual([]);
});

test('remembers a child that it saw once, wherever that went', async () => {
  const child =
    `sh -c 'trap "" TERM; echo $$ > "$DIR/child"; while [ ! -e "$DIR/go" ]; do sleep 0.02; done; ` +
    `exec setsid sh -c "trap : TERM; touch $DIR/gone; while :; do sleep 0.05; done" > /dev/null 2>&1' &`;
  await using stage = await Stage.open(`export DIR\n${child}\nwhile :; do sleep 0.05; done`);
  await stage.until('child');
  const pid = Number(await readFile(join(stage.directory, 'child'), 'utf8'));
  expect(stage.server.tree()).toContain(pid);
  await writeFile(join(stage.directory, 'go'), '');
  await stage.until('gone');
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  expect(stage.server.tree()).toEqual([]);
});

test('wakes a stopped member for its SIGTERM', async () => {
  await using stage = await Stage.open(`trap 'exit 0' TERM; touch "$DIR/up"; while :; do sleep 0.05; done`);
  await stage.until('up');
  process.kill(stage.server.pid, 'SIGSTOP');
  await stage.server.stop({ graceMs: 2_000 });
  expect(await stage.server.exited).toEqual({ code: 0, signal: null });
});

test('finds the members of a session that a member opened, when that one is gone', async () => {
  const daemon =
    `setsid sh -c 'touch "$DIR/member"; (trap "" TERM; exec > /dev/null 2>&1; while :; do sleep 0.05; done) & ` +
    `echo $! > "$DIR/daemon"; while [ ! -e "$DIR/go" ]; do sleep 0.02; done' &`;
  await using stage = await Stage.open(`export DIR\n${daemon}\nwhile :; do sleep 0.05; done`);
  await stage.until('daemon');
  const pid = Number(await readFile(join(stage.directory, 'daemon'), 'utf8'));
  const opener = readStat(pid)?.parent ?? 0;
  expect(stage.server.tree()).toEqual(expect.arrayContaining([pid, opener]));
  await writeFile(join(stage.directory, 'go'), '');
  await until(() => readStat(opener)?.isDead ?? true);
  expect(stage.server.tree()).toContain(pid);
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  expect(readStat(pid)?.isDead ?? true).toBe(true);
});

test('finds those beside a writer of the log in a session whose opener nobody ever saw', async () => {
  const loop = 'while :; do sleep 0.05; done';
  const quiet = `(exec > /dev/null 2>&1; ${loop}) & echo $! > "$DIR/quiet"`;
  await using stage = await Stage.open(
    `export DIR\nsetsid sh -c '${quiet}; (${loop}) & touch "$DIR/up"'\nwhile [ ! -e "$DIR/up" ]; do sleep 0.02; done; ${loop}`,
  );
  await stage.until('up');
  const pid = Number(await readFile(join(stage.directory, 'quiet'), 'utf8'));
  await until(() => readStat(readStat(pid)?.session ?? 0) === undefined);
  expect(stage.server.tree()).toContain(pid);
});

test('ends processes that fork faster than anyone can look', async () => {
  // Each starts its successor and ends. Without the directory, as after this test, they find no more to run.
  const hop = 'exec > /dev/null 2>&1\necho > "$DIR/up"; sh "$DIR/hop.sh" &';
  await using stage = await Stage.open(
    `export DIR; trap '' TERM\nwhile [ ! -s "$DIR/hop.sh" ]; do sleep 0.02; done\n` +
      `sh "$DIR/hop.sh" &\nwhile :; do sleep 0.05; done`,
  );
  await writeFile(join(stage.directory, 'hop.sh'), hop);
  await stage.until('up');
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  await rm(join(stage.directory, 'up'));
  await pause(200, never); // enough for a hundred of them
  expect((await readdir(stage.directory)).sort()).toEqual(['hop.sh', 'logs']);
});

test.each([
  ['in a session of its own', ''],
  ['each in a session of its own', 'setsid '],
])('ends a chain of processes without a log that live for a moment only, %s', async (_, how) => {
  await using stage = await Stage.open(
    `export DIR; trap '' TERM\nwhile [ ! -s "$DIR/hop.sh" ]; do sleep 0.02; done\n` +
      `setsid sh "$DIR/hop.sh" &\nwhile :; do sleep 0.05; done`,
  );
  await writeFile(join(stage.directory, 'hop.sh'), `exec > /dev/null 2>&1\necho > "$DIR/up"; ${how}sh "$DIR/hop.sh" &`);
  await stage.until('up');
  expect(await stage.server.stop({ graceMs: 200 })).toMatchObject({ survivors: [] });
  await rm(join(stage.directory, 'up'));
  await pause(200, never); // enough for a hundred of them
  expect((await readdir(stage.directory)).sort()).toEqual(['hop.sh', 'logs']);
});

test('finds a daemon without a log, in a session of its own, by what it was born to', async () => {
  const daemon = `setsid sh -c 'exec > /dev/null 2>&1; (echo $$ > "$DIR/daemon"; exec sleep 60)' &`;
  await using stage = await Stage.open(`export DIR\n${daemon}\nwhile [ ! -s "$DIR/daemon" ]; do sleep 0.02; done`);
  await stage.server.exited;
  const pid = Number(await readFile(join(stage.directory, 'daemon'), 'utf8'));
  expect(stage.server.tree()).toContain(pid);
});

test('leaves none of the children that a member goes on starting, unmarked and in sessions of their own', async () => {
  const mark = `60.${process.pid}`; // theirs alone on this machine, and the end of them where this test fails
  const child = `env -i setsid /bin/sleep ${mark} > /dev/null 2>&1`;
  await using stage = await Stage.open(
    `trap '' TERM; touch "$DIR/up"; n=0; while [ $n -lt 300 ]; do n=$((n+1)); ${child} & done; wait`,
  );
  await stage.until('up');
  expect(await stage.server.stop({ graceMs: 40 })).toMatchObject({ survivors: [] });
  const isLeft = ({ pid, isDead }: { pid: number; isDead: boolean }): boolean => !isDead && titleOf(pid) === 'sleep';
  const left = new ProcessTable().read().filter(isLeft);
  expect(left.filter(({ pid }) => readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(mark))).toEqual([]);
});

test('says whom it had to kill, by name', async () => {
  await using stage = await Stage.open(`trap '' TERM; touch "$DIR/up"; while :; do sleep 0.05; done`);
  await stage.until('up');
  const { killed } = await stage.server.stop({ graceMs: 200 });
  expect(killed).toContainEqual({ pid: stage.server.pid, name: 'sh' });
});

test('does not wait for the whole grace where the leader died and left members that do not listen', async () => {
  const orphan = `sh -c 'trap "" TERM; touch "$DIR/up"; while :; do sleep 0.05; done' &`;
  await using stage = await Stage.open(`export DIR\n${orphan}\nwhile :; do sleep 0.05; done`);
  await stage.until('up');
  process.kill(stage.server.pid, 'SIGKILL');
  await stage.server.exited;
  const startMs = performance.now();
  expect(await stage.server.stop({ graceMs: 60_000 })).toMatchObject({ survivors: [] });
  expect(performance.now() - startMs).toBeLessThan(20_000);
});

test('reads all processes once, however many trees are asked in the same moment', () => {
  const table = new ProcessTable();
  const first = table.read();
  expect(table.read()).toBe(first);
  return Promise.resolve().then(() => expect(table.read()).not.toBe(first));
});

test('leaves a person alone who reads the log', async () => {
  await using stage = await Stage.open('while :; do sleep 0.05; done');
  const reader = execa('tail', ['-f', stage.log.path], { reject: false, stdout: 'ignore' });
  try {
    expect(stage.server.tree()).not.toContain(reader.pid);
  } finally {
    reader.kill('SIGKILL');
    await reader;
  }
});

test('does not mistake another process with the same pid for the leader', async () => {
  const stranger = execa('sleep', ['30'], { reject: false });
  try {
    const leader = { pid: stranger.pid ?? 0, startTime: '1' };
    expect(new ProcessTree({ leader, logPath: '/no/such/log', table: new ProcessTable() }).scan()).toEqual([]);
  } finally {
    stranger.kill('SIGKILL');
    await stranger;
  }
});

test('never ends the group and the session of the agent, whoever opened those', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'gantry-tree-'));
  const log = join(directory, 'server.log');
  const agent = `
    import { spawn } from 'node:child_process';
    import { openSync } from 'node:fs';
    import { once } from 'node:events';
    import { ProcessTable } from '${resolve('agent/server/process-table.ts')}';
    import { ProcessTree } from '${resolve('agent/server/process-tree.ts')}';
    const fd = openSync('${log}', 'a');
    await once(spawn('sleep', ['60'], { stdio: ['ignore', fd, fd] }), 'spawn');
    const tree = new ProcessTree({ leader: null, logPath: '${log}', table: new ProcessTable() });
    console.log(tree.scan().length, (await tree.stop({ graceMs: 100 })).survivors.length);`;
  // The shell that opened both is gone when the agent looks: as after a login that has ended.
  const start = ['-c', '"$@" &', 'sh', process.execPath, '--import', 'tsx'];
  const ended = execa('sh', [...start, '--input-type=module', '-e', agent], { detached: true, stdin: 'ignore' });
  expect((await ended).stdout).toBe('1 0');
  await rm(directory, { recursive: true, force: true });
});

test('passes nothing of our environment on, but the mark of its log', async () => {
  await using stage = await Stage.open('env');
  await stage.server.exited;
  const names = (await stage.log.lastLines()).split('\n').map((line) => line.split('=')[0]);
  expect(names.filter((name) => name !== 'PWD' && name !== '_' && name !== 'SHLVL')).toEqual(['PATH', LOG_MARK]);
});
