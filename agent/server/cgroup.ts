import { execa } from 'execa';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { pause } from '../../shared/abort.ts';
import type { Log } from '../../shared/log.ts';

const PROBE_MS = 3_000;
const REMOVE_TRIES = 20;
const REMOVE_PAUSE_MS = 25;

/**
 * The shell puts itself into the control group $1 before it becomes the server: so every process of the server is in it,
 * from the first one on. The words of the command are arguments and never part of the script.
 */
const ENTER_AND_EXEC = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"';

/** The group of the agent itself, below the one that was given to it. */
const AGENT_GROUP = 'agent';

/**
 * The part of the cgroup v2 tree that was given to this agent (a unit with `Delegate=yes`). One group for each start of a server: writing to its `cgroup.kill` ends
 * every process in it at once, wherever it went and whatever it called itself.
 */
export class CgroupRoot {
  readonly #own: string;
  readonly #prefix: string;

  private constructor(own: string, prefix: string) {
    this.#own = own;
    this.#prefix = prefix;
  }

  /** Tries it out. Undefined where it does not work: cgroup v1, read-only, a container, not delegated. Says which, once. */
  static async open({
    stateDir,
    log,
    own = ownCgroup(),
  }: {
    stateDir: string;
    log: Log;
    own?: string | undefined;
  }): Promise<CgroupRoot | undefined> {
    // Two agents may live in one group, each with its own state directory: neither must end the servers of the other.
    const prefix = `gantry-${createHash('sha256').update(stateDir).digest('hex').slice(0, 8)}-`;
    try {
      if (own === undefined) throw new Error('no cgroup v2 is mounted for this process');
      // The root of the machine has no such file, nor have kernels before 5.14.
      if (!existsSync(join(own, 'cgroup.kill'))) throw new Error(`${own} has no cgroup.kill`);
      const root = new CgroupRoot(own, prefix);
      await root.#tryOut();
      log.info({ event: 'cgroup-found', path: own });
      return root;
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      log.info({ event: 'cgroup-not-delegated', reason, instead: 'process group, session and log file' });
      return undefined;
    }
  }

  /** `name` is that of the start, and never used again. */
  make(name: string): Cgroup {
    const path = join(this.#own, `${this.#prefix}${name}`);
    mkdirSync(path);
    return new Cgroup(path);
  }

  /** Those that an earlier agent with the same state directory made and did not remove. */
  leftOver(): { cgroup: Cgroup; name: string }[] {
    const names = directoriesIn(this.#own).filter((name) => name.startsWith(this.#prefix));
    return names.map((name) => ({ cgroup: new Cgroup(join(this.#own, name)), name: name.slice(this.#prefix.length) }));
  }

  /** That a group can be made does not mean that a process may be moved into it. */
  async #tryOut(): Promise<void> {
    const cgroup = this.make(`try-${process.pid}`);
    try {
      const [shell = '', ...args] = cgroup.argvInside(['cat', '/proc/self/cgroup']);
      const { stdout } = await execa(shell, args, {
        ...{ timeout: PROBE_MS, killSignal: 'SIGKILL', stdin: 'ignore' },
        ...{ extendEnv: false, env: { PATH: '/usr/bin:/bin' } },
      });
      if (!stdout.includes(basename(cgroup.path))) throw new Error(`${this.#own} takes no process in`);
    } finally {
      await cgroup.remove();
    }
  }
}

/** The processes of one start of a server. */
export class Cgroup {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** The command line that runs this one in the group. */
  argvInside(argv: readonly string[]): string[] {
    return ['/bin/sh', '-c', ENTER_AND_EXEC, 'sh', this.path, ...argv];
  }

  /** Live ones, those in groups below it included. The kernel lists no zombies. */
  pids(): number[] {
    return [this.path, ...below(this.path)].flatMap((path) => {
      try {
        return readFileSync(join(path, 'cgroup.procs'), 'latin1').split('\n').filter(Boolean).map(Number);
      } catch {
        return []; // removed meanwhile
      }
    });
  }

  /** Ends all of them at once. Nobody can leave by forking, and there is nothing to wait for but the kernel. */
  kill(): void {
    try {
      writeFileSync(join(this.path, 'cgroup.kill'), '1');
    } catch {
      // Removed, or not ours any more: each process is killed by itself then.
    }
  }

  /** Removes the empty directory; the kernel may take a moment to see that it is empty. */
  async remove(): Promise<void> {
    for (let tries = 1; existsSync(this.path); tries += 1) {
      try {
        for (const path of [...below(this.path).reverse(), this.path]) rmdirSync(path);
        return;
      } catch {
        if (tries === REMOVE_TRIES) return; // somebody lives in it: the next start of the agent finds it again
        await pause(REMOVE_PAUSE_MS, NEVER);
      }
    }
  }
}

/**
 * Moves this process into a group of its own below the one of its unit, beside those of its servers: so that limits can be
 * put on the groups, which the kernel refuses while a process is in the one above them. For the main process of a unit
 * alone: in any other group are processes of others.
 */
export function enterOwnGroup(log: Log, own = ownCgroup()): void {
  if (own === undefined) return;
  try {
    mkdirSync(join(own, AGENT_GROUP), { recursive: true });
    writeFileSync(join(own, AGENT_GROUP, 'cgroup.procs'), String(process.pid));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    log.info({ event: 'own-cgroup-not-entered', reason }); // the unit does not delegate: the agent stays where it is
  }
}

/** The directory of the group that this process was given, in the cgroup v2 tree. */
function ownCgroup(): string | undefined {
  try {
    const path = cgroupPath(readFileSync('/proc/self/mountinfo', 'utf8'), readFileSync('/proc/self/cgroup', 'utf8'));
    return path !== undefined && basename(path) === AGENT_GROUP ? dirname(path) : path;
  } catch {
    return undefined; // not Linux
  }
}

/** Where a cgroup v2 tree is mounted, alone or beside v1, and which part of it is visible there. */
export function cgroupPath(mountinfo: string, cgroup: string): string | undefined {
  const path = /^0::(\/.*)$/m.exec(cgroup)?.[1];
  const mount = mountinfo.split('\n').find((line) => / - cgroup2 /.test(line));
  const [root, at] = mount?.split(' ').slice(3, 5) ?? [];
  // A path above the mount means that the tree is another namespace's.
  if (path === undefined || root === undefined || at === undefined || path.startsWith('/..')) return undefined;
  if (path === root) return at;
  if (root === '/') return join(at, path);
  return path.startsWith(`${root}/`) ? join(at, path.slice(root.length)) : undefined;
}

/** All groups below this one, each before those below it. */
function below(path: string): string[] {
  return directoriesIn(path).flatMap((name) => [join(path, name), ...below(join(path, name))]);
}

function directoriesIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []));
  } catch {
    return []; // removed meanwhile
  }
}

const NEVER = new AbortController().signal;
