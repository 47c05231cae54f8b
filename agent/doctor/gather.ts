import { execa } from 'execa';
import { lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errorCode } from '../../shared/errors.ts';
import { listenersOn, ownerOf } from '../server/port-owner.ts';
import { ProcessTable, ancestors } from '../server/process-table.ts';
import { ServerLog } from '../server/server-log.ts';
import type { HostFacts, PlaceFact, UnitFact } from './host-facts.ts';

const ASK_MS = 10_000;
const MIB = 1024 ** 2;

/** Who the service runs as, by numbers: what it may do is judged without becoming it. */
export type ServiceUser = { uid: number; gids: readonly number[] };

type Asked = { exitCode: number | undefined; stdout: string; tookMs: number };

/** Runs a program for its answer; one that hangs is left behind. */
async function ask(program: string, args: readonly string[]): Promise<Asked> {
  const startMs = performance.now();
  const options = { timeout: ASK_MS, killSignal: 'SIGKILL', reject: false, stdin: 'ignore', stderr: 'ignore' } as const;
  const { exitCode, stdout } = await execa(program, args, options);
  return { exitCode, stdout: exitCode === undefined ? '' : stdout, tookMs: performance.now() - startMs };
}

export async function readDriver(nvidiaSmi: string): Promise<Pick<HostFacts, 'driver' | 'gpus'>> {
  const fields = 'index,name,driver_version,persistence_mode';
  const query = (names: string) => ask(nvidiaSmi, [`--query-gpu=${names}`, '--format=csv,noheader']);
  const full = await query(fields);
  const { exitCode, stdout, tookMs } = full.exitCode === 0 ? full : await query('index,name,driver_version');
  if (exitCode === undefined) {
    const problem = `${nvidiaSmi} gave no answer within ${ASK_MS / 1_000} s, or is not there`;
    return { driver: { problem }, gpus: [] };
  }
  if (exitCode !== 0) return { driver: { problem: `${nvidiaSmi} failed with exit code ${exitCode}` }, gpus: [] };
  const rows = stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split(',').map((cell) => cell.trim()));
  const gpus = rows.map(([index = '', name = '', , mode]) => ({
    index: Number(index),
    name,
    isPersistent: mode === 'Enabled' ? true : mode === 'Disabled' ? false : undefined,
  }));
  const { stdout: table } = await ask(nvidiaSmi, []);
  const cuda = /CUDA Version:\s*(\d+\.\d+)/.exec(table)?.[1];
  return { driver: { version: rows[0]?.[2] ?? 'unknown', cuda, answerMs: tookMs }, gpus };
}

/** Where no agent runs, nobody's are ours. */
export async function readProcesses(nvidiaSmi: string): Promise<HostFacts['processes']> {
  const { exitCode, stdout } = await ask(nvidiaSmi, [
    ...['--query-compute-apps=pid,process_name,used_memory', '--format=csv,noheader,nounits'],
  ]);
  if (exitCode !== 0) return undefined;
  return stdout.split('\n').flatMap((line) => {
    const [, pid = '', name = '', used = ''] = /^(\d+),\s*(.*),\s*([^,]*)$/.exec(line.trim()) ?? [];
    if (pid === '') return [];
    const usedMiB = /^\d+$/.test(used) ? Number(used) : undefined;
    return [{ pid: Number(pid), name, usedMiB }];
  });
}

/** Undefined where no such unit is installed. */
export async function readUnit(): Promise<UnitFact | undefined> {
  const names = [
    ...['LoadState', 'ActiveState', 'UnitFileState', 'Result', 'NRestarts', 'User', 'ProtectHome', 'BindPaths'],
    ...['BindReadOnlyPaths', 'ReadWritePaths'],
  ];
  const { stdout } = await ask('systemctl', ['show', 'gantry-agent.service', '-p', names.join(',')]);
  const values = new Map(stdout.split('\n').map((line) => [line.split('=', 1)[0] ?? '', line.replace(/^[^=]*=/, '')]));
  if (values.get('LoadState') !== 'loaded') return undefined;
  // `SOURCE:DESTINATION:OPTIONS` or `PATH`, several of them with spaces between.
  const paths = (name: string): string[] =>
    (values.get(name) ?? '').split(' ').flatMap((entry) => entry.replace(/^[-+]+/, '').split(':')[0] || []);
  return {
    activeState: values.get('ActiveState') ?? 'unknown',
    isEnabled: /^(enabled|static|generated|alias)/.test(values.get('UnitFileState') ?? ''),
    result: values.get('Result') ?? 'unknown',
    restarts: Number(values.get('NRestarts') ?? 0),
    user: values.get('User') ?? 'root',
    hidesHomes: !/^(no|false|0|read-only)?$/.test(values.get('ProtectHome') ?? ''),
    openPaths: [...paths('BindPaths'), ...paths('BindReadOnlyPaths')],
    writablePaths: [...paths('ReadWritePaths'), ...paths('BindPaths')],
  };
}

export async function readUser(name: string): Promise<ServiceUser | undefined> {
  const [uid, gids] = await Promise.all([ask('id', ['-u', name]), ask('id', ['-G', name])]);
  if (uid.exitCode !== 0) return undefined;
  return { uid: Number(uid.stdout), gids: gids.stdout.trim().split(' ').map(Number) };
}

export async function readPlace(
  { what, path }: Pick<PlaceFact, 'what' | 'path'>,
  user: ServiceUser | undefined,
): Promise<PlaceFact> {
  const exists = statSync(path, { throwIfNoEntry: false }) !== undefined;
  // Of what is not there yet, that of the directory it will be in.
  const freeMiB = await statfs(exists ? path : dirname(path)).then(
    ({ bavail, bsize }) => Math.floor((bavail * bsize) / MIB),
    () => undefined,
  );
  return { what, path, exists, freeMiB, isUsersToWrite: exists && user ? mayUse(path, user, 0o2) : undefined };
}

/** As the kernel decides by modes and owners; access lists are not looked at. `bit`: 4 read, 2 write, 1 run. */
export function mayUse(path: string, { uid, gids }: ServiceUser, bit: number): boolean {
  if (uid === 0) return true;
  const above: string[] = [];
  for (let at = dirname(path); !above.includes(at); at = dirname(at)) above.push(at);
  const allows = (at: string, wanted: number): boolean => {
    try {
      const stat = statSync(at);
      const shift = stat.uid === uid ? 6 : gids.includes(stat.gid) ? 3 : 0;
      return ((stat.mode >> shift) & wanted) === wanted;
    } catch {
      return false; // not there, or in a directory closed to us as well
    }
  };
  return allows(path, bit) && above.every((at) => allows(at, 0o1));
}

/** Versions of the Python packages in the environment that a program belongs to, from their directories' names. */
export function packagesBeside(program: string): Record<string, string> {
  const lib = join(dirname(dirname(program)), 'lib');
  const dirs = namesIn(lib).filter((name) => /^python3/.test(name));
  const entries = dirs.flatMap((name) => namesIn(join(lib, name, 'site-packages')));
  return Object.fromEntries(
    entries.flatMap((name) => {
      const [, found = '', version = ''] =
        /^(vllm|vllm_omni|transformers|torch|diffusers)-(.+)\.dist-info$/.exec(name) ?? [];
      return found === '' ? [] : [[found, version]];
    }),
  );
}

/** Who has a port of ours, where it is not the agent that has this state directory. */
export function readPortHolder(port: number, agentPid: number | undefined): string | undefined {
  const listeners = listenersOn(port);
  if (listeners.size === 0) return undefined;
  const owner = ownerOf(listeners, new ProcessTable());
  if (owner !== undefined) return owner.pid === agentPid ? undefined : `${owner.name} (pid ${owner.pid})`;
  return agentPid === undefined ? 'a program of another user' : undefined; // the agent is another user's, too
}

/** Processes that write to a log of a server and have no agent above them. */
export function readOrphans(logDir: string): HostFacts['orphans'] {
  return new ProcessTable().read().flatMap(({ pid, isDead, logs, parent }) => {
    const log = logs.find((path) => dirname(path) === logDir && ServerLog.slotOf(path) !== undefined);
    if (log === undefined || isDead) return [];
    const isFirst = parent === 1 || ancestors(process.pid).includes(parent);
    return isFirst ? [{ pid, log }] : [];
  });
}

export function readTokens(stateDir: string): HostFacts['tokens'] {
  const path = join(stateDir, 'tokens.json');
  try {
    // Not through a link: what `--fix` changes as root must be this file, and its directory belongs to another user.
    const found = lstatSync(path);
    if (!found.isFile()) return undefined;
    const { mode } = found;
    const count = (readFileSync(path, 'utf8').match(/"sha256"/g) ?? []).length;
    return { count, path, mode: mode & 0o777 };
  } catch (error) {
    const isAbsent = errorCode(error) === 'ENOENT';
    return isAbsent ? { count: 0, path, mode: 0o600 } : undefined;
  }
}

export async function readShmMiB(): Promise<number | undefined> {
  return await statfs('/dev/shm').then(
    ({ blocks, bsize }) => Math.floor((blocks * bsize) / MIB),
    () => undefined,
  );
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return []; // no such environment
  }
}
