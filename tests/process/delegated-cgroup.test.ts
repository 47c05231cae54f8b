import { execa } from 'execa';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { cgroupPath } from '../../agent/server/cgroup.ts';
import type { LoggedEvent } from '../../scripts/lib/simulated-host.ts';
import { TestFleet, eventually, isAlive, vllm } from '../helpers/fleet.ts';

const NOBODY = 65_534;
/** What systemd gives to the user of a unit with `Delegate=yes`. */
const DELEGATED = ['cgroup.procs', 'cgroup.subtree_control', 'cgroup.threads'];
const START =
  'echo $$ > "$0/cgroup.procs" && export SYSTEMD_EXEC_PID=$$ && exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"';

const PARENT = realCgroup();
if (PARENT === undefined) process.stdout.write('delegated cgroup test: skipped, it needs root and cgroup v2\n');

test.skipIf(PARENT === undefined)(
  'an agent that is not root, in a group that was delegated to it, keeps each server in one below, and leaves none',
  { timeout: 90_000 },
  async () => {
    const own = delegatedGroup();
    await using fleet = await TestFleet.start([
      {
        name: 'a',
        models: {
          klein: { ...vllm('black-forest-labs/FLUX.2-klein-4B', { fork: true, setsid: true }), preload: true },
        },
        config: { times: { stop_grace: '2s' } },
      },
    ]);
    const host = fleet.host('a');
    await host.stopAgent();
    chmodSync(dirname(fleet.directory), 0o711); // that of all tests, which is closed to others
    await execa('chown', ['-R', `${NOBODY}:${NOBODY}`, fleet.directory]);

    await using first = await runAgent(own, host);
    const [group = ''] = serverGroupsIn(own);
    const members = await eventually('the model holds VRAM', async () => {
      const pids = await host.computePids();
      return pids.length > 0 && first.event('model-ready') !== undefined ? pidsIn(join(own, group)) : undefined;
    });
    expect(first.event('cgroup-found')).toMatchObject({ path: own });
    // As the main process of a unit: so nothing is in the group above, and limits could be put on those of the servers.
    expect(pidsIn(join(own, 'agent'))).toContain(first.pid);
    expect(pidsIn(own)).toEqual([]);
    expect(serverGroupsIn(own)).toEqual([expect.stringMatching(/^gantry-[0-9a-f]{8}-klein-\d{17}$/)]);
    expect(members).toEqual(expect.arrayContaining(await host.computePids()));
    expect(readFileSync(`/proc/${members[0]}/status`, 'utf8')).toMatch(/^Uid:\s65534/m);

    await first.end('SIGKILL');
    expect(pidsIn(join(own, group))).not.toEqual([]);
    await using second = await runAgent(own, host);
    await eventually('ready again', () => Promise.resolve(second.event('model-ready')));
    expect(second.event('server-left-over')).toBeDefined();
    expect(serverGroupsIn(own)).toHaveLength(1);
    expect(serverGroupsIn(own)).not.toContain(group);
    const last = pidsIn(join(own, serverGroupsIn(own)[0] ?? ''));

    await second.end('SIGTERM');
    expect(serverGroupsIn(own)).toEqual([]);
    expect((await Promise.all([...members, ...last].map(isAlive))).some(Boolean)).toBe(false);
  },
);

/** The agent's own program as an unprivileged user in this group; resolves when its server is on the way. */
async function runAgent(own: string, { directory, ledger }: { directory: string; ledger: string }) {
  const program = ['node', resolve('dist/gantry-agent.mjs'), 'run', '--config', join(directory, 'agent.yaml')];
  const env = { GANTRY_SIM_LEDGER: ledger, PATH: `${resolve('dist/sim')}:/usr/local/bin:/usr/bin:/bin` };
  const agent = execa('/bin/sh', ['-c', START, own, ...program], {
    env,
    reject: false,
    stdin: 'ignore',
    stderr: 'inherit',
    buffer: false,
  });
  let text = '';
  agent.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const event = (name: string): LoggedEvent | undefined => {
    const lines = text.split('\n').filter((line) => line.endsWith('}'));
    return lines.map((line) => JSON.parse(line) as LoggedEvent).find((line) => line.event === name); // pino's lines
  };
  await eventually('a server is on the way', () => Promise.resolve(event('model-loading')));
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    agent.kill(signal);
    await agent;
  };
  return { pid: agent.pid, event, end, [Symbol.asyncDispose]: () => end('SIGKILL') };
}

function groupsIn(path: string): string[] {
  return readdirSync(path, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []));
}

/** All but the agent's own. */
function serverGroupsIn(path: string): string[] {
  return groupsIn(path).filter((name) => name !== 'agent');
}

function pidsIn(path: string): number[] {
  return readFileSync(join(path, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
}

/** As systemd delegates one: the directory and three of its files, and nothing above it. */
function delegatedGroup(): string {
  const path = join(PARENT ?? '', `gantry-delegated-${process.pid}`);
  mkdirSync(path);
  for (const at of [path, ...DELEGATED.map((name) => join(path, name))]) chownSync(at, NOBODY, NOBODY);
  onTestFinished(async () => {
    for (const name of groupsIn(path)) writeFileSync(join(path, name, 'cgroup.kill'), '1'); // what a failed test left
    await eventually('the group is gone', () => Promise.resolve(hasGone(path) || undefined));
  });
  return path;
}

function hasGone(path: string): boolean {
  try {
    for (const at of [...groupsIn(path).map((name) => join(path, name)), path]) rmdirSync(at);
    return true;
  } catch {
    return false; // somebody is on his way out of it
  }
}

/** Where this process may make groups for other users. */
function realCgroup(): string | undefined {
  try {
    if (process.getuid?.() !== 0) return undefined;
    const path = cgroupPath(readFileSync('/proc/self/mountinfo', 'utf8'), readFileSync('/proc/self/cgroup', 'utf8'));
    if (path === undefined) return undefined;
    const probe = join(path, `gantry-delegated-probe-${process.pid}`);
    mkdirSync(probe);
    const canKill = existsSync(join(probe, 'cgroup.kill'));
    rmdirSync(probe);
    return canKill ? path : undefined;
  } catch {
    return undefined; // read-only, or v1
  }
}
