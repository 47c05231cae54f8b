import { execa } from 'execa';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, rmdirSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { CgroupRoot, cgroupPath } from '../../../agent/server/cgroup.ts';
import { ProcessTable, isAlive, readStat } from '../../../agent/server/process-table.ts';
import { endLeftOver } from '../../../agent/server/left-over.ts';
import { pause } from '../../../shared/abort.ts';
import { LifeStage, eventLog, quietSampler, script } from '../model/life-stage.ts';
import { never, until } from '../model/model-host.ts';

vi.setConfig({ testTimeout: 120_000 });

describe('the directory of our own group', () => {
  const V2 = '29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate';
  const HYBRID = '31 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw';
  const CONTAINER = '700 690 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw';
  const V1 = '40 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory';
  const ROWS: [what: string, mountinfo: string, cgroup: string, path: string | undefined][] = [
    ['in a unit', V2, '0::/system.slice/gantry.service', '/sys/fs/cgroup/system.slice/gantry.service'],
    ['beside v1', `${V1}\n${HYBRID}`, '4:memory:/a\n0::/gantry', '/sys/fs/cgroup/unified/gantry'],
    ['in a container with the host’s numbering', CONTAINER, '0::/docker/abc/in', '/sys/fs/cgroup/in'],
    ['in a container with its own', V2, '0::/', '/sys/fs/cgroup'],
    ['outside of what is mounted', CONTAINER, '0::/docker/abcdef', undefined],
    ['above what can be seen', V2, '0::/../other', undefined],
    ['with v1 alone', V1, '4:memory:/a', undefined],
  ];
  test.each(ROWS)('%s', (_, mountinfo, cgroup, path) => {
    expect(cgroupPath(mountinfo, cgroup)).toBe(path);
  });
});

test('where nothing was delegated there is none, and one line says so', async () => {
  const plain = await mkdtemp(join(tmpdir(), 'gantry-cgroup-'));
  const lookalike = join(plain, 'lookalike');
  mkdirSync(lookalike);
  writeFileSync(join(lookalike, 'cgroup.kill'), '');
  try {
    for (const own of [plain, lookalike, '/no/such/group']) {
      const { log, events } = eventLog();
      expect(await CgroupRoot.open({ stateDir: '/state', log, own })).toBeUndefined();
      expect(events.map(({ event }) => event)).toEqual(['cgroup-not-delegated']);
    }
  } finally {
    await rm(plain, { recursive: true, force: true });
  }
});

const REAL = realCgroup();
if (REAL === undefined) process.stdout.write('cgroup tests: skipped, this machine lets us make no cgroup v2\n');

describe.skipIf(REAL === undefined)('a real control group', () => {
  test('holds a server from its first process on, and its end ends all of them, wherever they went', async () => {
    const own = ownGroup();
    const escaped = `setsid sh -c 'trap "" TERM; exec > /dev/null 2>&1; while :; do sleep 0.05; done' > /dev/null 2>&1 &`;
    await using stage = await LifeStage.open({
      model: script(`trap '' TERM; ${escaped}\necho up; while :; do sleep 0.05; done`),
      ...{ cgroup: own, times: { stopGraceMs: 200 } },
    });
    await stage.life.begin([], undefined);
    const [group = ''] = groupsIn(own);
    expect(group).toMatch(/^gantry-[0-9a-f]{8}-a-\d{17}$/);
    expect(await stage.recordsText()).toContain(join(own, group));
    await vi.waitFor(async () => expect(await stage.life.log?.lastLines()).toBe('up'), { timeout: 60_000 });
    const pids = stage.life.pids();
    expect(pids).toContain(stage.life.process?.pid);
    expect(pids.length).toBeGreaterThanOrEqual(2);
    const members = pids.flatMap((pid) => readStat(pid) ?? []);
    await stage.life.bury('asked');
    expect(members.filter(isAlive).filter(({ name }) => name !== 'sleep')).toEqual([]);
    expect(groupsIn(own)).toEqual([]);
    expect(stage.event('server-forced')).toBeDefined();
  });

  test('has no way out for processes that fork faster than anyone can look, in a session of their own', async () => {
    const own = ownGroup();
    const hop = 'exec > /dev/null 2>&1\necho > "$DIR/up"; sh "$DIR/hop.sh" &';
    const inLogs = 'DIR=$(dirname "$(readlink /proc/$$/fd/1)"); export DIR';
    const model = script(`${inLogs}; printf '%s' '${hop}' > "$DIR/hop.sh"; setsid sh "$DIR/hop.sh"; exec sleep 60`);
    await using stage = await LifeStage.open({ model, cgroup: own, times: { stopGraceMs: 200 } });
    await stage.life.begin([], undefined);
    const mark = join(stage.directory, 'logs', 'up');
    await until(() => existsSync(mark));
    await stage.life.bury('asked');
    expect(groupsIn(own)).toEqual([]); // by force, unless the SIGTERM before happened to meet the one that lived just then
    rmSync(mark);
    await pause(200, never); // enough for a hundred of them
    expect(existsSync(mark)).toBe(false);
  });

  test('is ended at the next start where its agent and all that it wrote down are gone', async () => {
    const own = ownGroup();
    const { log, events } = eventLog();
    const root = await CgroupRoot.open({ stateDir: '/state', log, own });
    const other = await CgroupRoot.open({ stateDir: '/other-state', log, own });
    const [ours, theirs] = [root?.make('a-20260101000000000'), other?.make('b-20260101000000000')];
    // Each in a session of its own, as every server: else it would be in the group of the test run.
    const run = (argv: string[] = []) =>
      execa(argv[0] ?? '', argv.slice(1), { reject: false, stdio: 'ignore', detached: true });
    const [orphan, stranger] = [
      run(ours?.argvInside(['/bin/sh', '-c', 'trap "" TERM; while :; do sleep 0.05; done'])),
      run(theirs?.argvInside(['sleep', '60'])),
    ];
    await until(() => (ours?.pids().length ?? 0) > 0 && (theirs?.pids().length ?? 0) > 0);
    await using sampler = quietSampler();
    await endLeftOver({
      ...{ records: [], cgroups: root, logDir: '/no/logs', table: new ProcessTable(), sampler, log, signal: never },
      times: { stopGraceMs: 200, vramBackMs: 100 },
    });
    await orphan;
    expect(theirs?.pids()).toEqual([stranger.pid]);
    expect(groupsIn(own).filter((name) => name.includes('-a-'))).toEqual([]);
    const told = events.find(({ event }) => event === 'server-left-over');
    expect(told).toMatchObject({
      slotId: 'a',
      processes: expect.arrayContaining([expect.objectContaining({ name: 'sh' })]) as unknown,
    });
    theirs?.kill();
    await stranger;
    await theirs?.remove();
  });

  test('does not outlive a start that failed', async () => {
    const own = ownGroup();
    const model = script('true');
    if (model.launch.kind !== 'owned') throw new Error('ours');
    const missing = { ...model, launch: { ...model.launch, command: ['/no/such/program'] } };
    await using stage = await LifeStage.open({ model: missing, cgroup: own });
    await expect(stage.load()).rejects.toThrow('/no/such/program was not found');
    expect(groupsIn(own)).toEqual([]);
  });
});

function groupsIn(own: string): string[] {
  return readdirSync(own, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []));
}

/** A group that stands for the agent's own, as systemd would have delegated it. */
function ownGroup(): string {
  const path = join(REAL ?? '', `gantry-test-${process.pid}-${Date.now()}`);
  mkdirSync(path);
  onTestFinished(() => {
    for (const name of groupsIn(path)) rmdirSync(join(path, name));
    rmdirSync(path);
  });
  return path;
}

/** Where this process may make one. */
function realCgroup(): string | undefined {
  try {
    const mountinfo = readFileSync('/proc/self/mountinfo', 'utf8');
    const path = cgroupPath(mountinfo, readFileSync('/proc/self/cgroup', 'utf8'));
    if (path === undefined) return undefined;
    const probe = join(path, `gantry-test-probe-${process.pid}`);
    mkdirSync(probe);
    const canKill = existsSync(join(probe, 'cgroup.kill'));
    rmdirSync(probe);
    return canKill ? path : undefined;
  } catch {
    return undefined; // read-only, v1 or not root
  }
}
