import { execa } from 'execa';
import { constants, accessSync, statSync, writeFileSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { Cgroup } from './cgroup.ts';
import type { ProcessTable } from './process-table.ts';
import { LOG_MARK, startTimeOf } from './process-table.ts';
import type { TreeEnd } from './process-tree.ts';
import { ProcessTree } from './process-tree.ts';
import type { ServerLog } from './server-log.ts';

export type Exit = { code: number | null; signal: string | null };

export type ServerProcessOptions = {
  argv: readonly string[];
  cwd?: string | undefined;
  env: Record<string, string>;
  log: ServerLog;
  /** Where the host gave us some: a group of its own. */
  cgroup?: Cgroup | undefined;
  table: ProcessTable;
  onLogProblem?: (error: unknown) => void;
};

/** The program is not there, or cannot be run: another start would not find it either. */
export class ProgramMissing extends AppError {}

/** The kernel shall end a server that eats all memory, not the agent that supervises it. */
const OOM_SCORE_ADJ = '500';

/** One server process with its whole tree. It runs until it exits or `stop` has ended everything it left. */
export class ServerProcess {
  readonly pid: number;
  readonly startTime: string;
  readonly log: ServerLog;
  /** The leader's own exit. Its children may live on, and may hold its files open: so never `close`. */
  readonly exited: Promise<Exit>;
  readonly #tree: ProcessTree;
  readonly #stopBegan = new AbortController();
  readonly #over = new AbortController();
  readonly #logBound: Promise<void>;
  #exit: Exit | undefined;
  #stopping: Promise<TreeEnd> | undefined;

  private constructor(o: {
    leader: { pid: number; startTime: string };
    exited: Promise<Exit>;
    options: ServerProcessOptions;
  }) {
    const { log, cgroup, table, onLogProblem } = o.options;
    this.pid = o.leader.pid;
    this.startTime = o.leader.startTime;
    this.log = log;
    this.exited = o.exited.then((exit) => (this.#exit = exit));
    this.#tree = new ProcessTree({ leader: o.leader, logPath: log.path, cgroup, table });
    this.#logBound = log.keepBounded({ signal: this.#over.signal, onProblem: onLogProblem ?? (() => undefined) });
  }

  /** Starts it in a session of its own, so that no signal of a terminal reaches it and its group can be ended. */
  static async start(options: ServerProcessOptions): Promise<ServerProcess> {
    const { argv, cwd, env, log, cgroup } = options;
    // Asked first: of a shell that cannot find it, only a number would be left of the reason.
    assertProgram(argv[0] ?? '', { cwd, path: env['PATH'] });
    const [command = '', ...args] = cgroup === undefined ? argv : cgroup.argvInside(argv);
    const file = await log.openForServer();
    const fd = file.fd as 9; // execa passes on any descriptor, but its types end at 9
    try {
      const child = execa(command, args, {
        ...(cwd !== undefined && { cwd }),
        env: { ...env, [LOG_MARK]: log.path },
        extendEnv: false,
        stdio: ['ignore', fd, fd],
        detached: true,
        cleanup: false, // the stop sequence is ours; execa would end the leader only
        forceKillAfterDelay: false,
        reject: false,
        buffer: false,
      });
      const exited = new Promise<Exit>((resolveExit) => {
        child.once('exit', (code: number | null, signal: string | null) => resolveExit({ code, signal }));
      });
      if (child.pid === undefined) {
        const { code, shortMessage } = await child;
        throw new ProgramMissing('MODEL_FAILED', `${argv[0]} cannot be started (${code ?? shortMessage}).`);
      }
      const { pid } = child;
      child.unref();
      lowerPriority(pid);
      // Gone within a microsecond: its exit event follows, and no process with this start time is ever found.
      return new ServerProcess({ leader: { pid, startTime: startTimeOf(pid) ?? 'gone' }, exited, options });
    } finally {
      await file.close();
    }
  }

  /** Set once the leader is gone. */
  get exit(): Exit | undefined {
    return this.#exit;
  }

  /** Aborts when its end begins. */
  get signal(): AbortSignal {
    return this.#stopBegan.signal;
  }

  tree(): number[] {
    return this.#tree.scan();
  }

  /** Ends the whole tree, also after the leader's death. Joins a stop under way, which is not made ruder by that. */
  stop({ graceMs }: { graceMs: number }): Promise<TreeEnd> {
    this.#stopping ??= this.#stop(graceMs);
    return this.#stopping;
  }

  /** Leaves whatever of it lives to itself, its log too. */
  async letGo(): Promise<void> {
    this.#stopBegan.abort();
    this.#over.abort();
    await this.#logBound;
  }

  async #stop(graceMs: number): Promise<TreeEnd> {
    this.#stopBegan.abort();
    const end = await this.#tree.stop({ graceMs });
    await this.letGo();
    return end;
  }
}

export function describeExit({ code, signal }: Exit): string {
  return signal === null ? `exited with code ${code}` : `was ended by ${signal}`;
}

/** As the kernel looks for it: a name in PATH, else a path, from the working directory. */
function assertProgram(command: string, { cwd, path }: { cwd: string | undefined; path: string | undefined }): void {
  const places = command.includes('/')
    ? [resolve(cwd ?? '.', command)]
    : (path ?? '').split(delimiter).map((directory) => join(resolve(cwd ?? '.', directory), command));
  if (cwd !== undefined && !isDirectory(cwd)) {
    throw new ProgramMissing('MODEL_FAILED', `The directory ${cwd} was not found. Correct \`cwd\` in agent.yaml.`);
  }
  if (command !== '' && places.some(isProgram)) return;
  throw new ProgramMissing(
    'MODEL_FAILED',
    `${command} was not found, or may not be run. Set it in agent.yaml to the path of the program, and reload the agent.`,
  );
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch {
    return false;
  }
}

function lowerPriority(pid: number): void {
  try {
    writeFileSync(`/proc/${pid}/oom_score_adj`, OOM_SCORE_ADJ);
  } catch {
    // Not permitted here: the kernel then chooses by size, which is the server too.
  }
}
