import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { pause } from '../../../shared/abort.ts';

/** The first argument that turns a simulated server's program into its own worker process. */
export const WORKER_ARGUMENT = 'simulated-worker';
export const WORKER_TITLE = 'vLLM-Omni::DiffusionWorker';

const POLL_MS = 100;
const JOIN_MS = 5_000;

/** A second process that does nothing but live: the ledger notes the VRAM under its pid. */
export function startWorker({
  isOwnSession,
  outlivesParent,
}: {
  isOwnSession: boolean;
  outlivesParent: boolean;
}): ChildProcess {
  const [program = ''] = process.argv.slice(1);
  return spawn(
    process.execPath,
    [...process.execArgv, program, WORKER_ARGUMENT, outlivesParent ? 'orphan' : String(process.pid)],
    // Standard output and error are the server's own, as with multiprocessing: its log file stays open in the worker.
    { detached: isOwnSession, stdio: ['ignore', 'inherit', 'inherit'] },
  );
}

/** The orderly end: SIGTERM, five seconds to go, SIGKILL. */
export async function stopWorker(worker: ChildProcess): Promise<void> {
  if (worker.exitCode !== null || worker.signalCode !== null) return;
  worker.kill('SIGTERM');
  try {
    await once(worker, 'exit', { signal: AbortSignal.timeout(JOIN_MS) });
  } catch {
    worker.kill('SIGKILL');
  }
}

/**
 * The worker's whole life. The real one asks the kernel for a signal when its parent dies (PR_SET_PDEATHSIG);
 * Node cannot, so it looks at its parent's pid ten times a second. An orphan does not look.
 */
export async function runWorker(parent: string | undefined): Promise<never> {
  process.title = WORKER_TITLE;
  const never = new AbortController().signal;
  while (parent === 'orphan' || parent === String(process.ppid)) await pause(POLL_MS, never);
  process.exit(1);
}
