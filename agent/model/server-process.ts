import { execa } from 'execa';
import { writeFileSync } from 'node:fs';
import { AppError } from '../../shared/errors.ts';
import { ProcessTree, startTimeOf } from './process-tree.ts';
import type { ServerLog } from './server-log.ts';

export type Exit = { code: number | null; signal: string | null };

export type ServerProcessOptions = {
  argv: readonly string[];
  cwd?: string;
  env: Record<string, string>;
  log: ServerLog;
};

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
  #exit: Exit | undefined;
  #stopping: Promise<number[]> | undefined;

  private constructor(options: { pid: number; startTime: string; log: ServerLog; exited: Promise<Exit> }) {
    this.pid = options.pid;
    this.startTime = options.startTime;
    this.log = options.log;
    this.exited = options.exited.then((exit) => (this.#exit = exit));
    this.#tree = new ProcessTree({ leader: options, logPath: options.log.path });
  }

  /** Starts it in a session of its own, so that no signal of a terminal reaches it and its group can be ended. */
  static async start({ argv, cwd, env, log }: ServerProcessOptions): Promise<ServerProcess> {
    const [command = '', ...args] = argv;
    const file = await log.openForServer();
    const fd = file.fd as 9; // execa passes on any descriptor, but its types end at 9
    try {
      const child = execa(command, args, {
        ...(cwd !== undefined && { cwd }),
        env,
        extendEnv: false,
        stdio: ['ignore', fd, fd],
        detached: true,
        cleanup: false, // the stop sequence is ours; execa would end the leader only
        forceKillAfterDelay: false,
        reject: false,
        buffer: false,
      });
      const exited = new Promise<Exit>((resolve) => {
        child.once('exit', (code: number | null, signal: string | null) => resolve({ code, signal }));
      });
      if (child.pid === undefined) {
        const { code, shortMessage } = await child;
        const why =
          code === 'ENOENT' ? `${command} was not found` : `${command} cannot be started (${code ?? shortMessage})`;
        throw new AppError(
          'MODEL_FAILED',
          `${why}. Set \`command\` of this model in agent.yaml to the path of the program${cwd === undefined ? '' : `, check \`cwd\` (${cwd})`}, and restart the agent.`,
        );
      }
      const { pid } = child;
      // Gone within a microsecond: its exit event follows, and no process with this start time is ever found.
      const startTime = startTimeOf(pid) ?? 'gone';
      child.unref();
      lowerPriority(pid);
      return new ServerProcess({ pid, startTime, log, exited });
    } finally {
      await file.close();
    }
  }

  /** Set once the leader is gone. */
  get exit(): Exit | undefined {
    return this.#exit;
  }

  tree(): number[] {
    return this.#tree.scan();
  }

  /** Ends the whole tree, also after the leader's death. Returns who could not be killed; joins a stop under way. */
  stop({ graceMs }: { graceMs: number }): Promise<number[]> {
    this.#stopping ??= this.#tree.stop({ graceMs });
    return this.#stopping;
  }
}

export function describeExit({ code, signal }: Exit): string {
  return signal === null ? `exited with code ${code}` : `was ended by ${signal}`;
}

function lowerPriority(pid: number): void {
  try {
    writeFileSync(`/proc/${pid}/oom_score_adj`, OOM_SCORE_ADJ);
  } catch {
    // Not permitted here: the kernel then chooses by size, which is the server too.
  }
}
