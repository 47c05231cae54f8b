import type { ChildProcess } from 'node:child_process';
import type { Server } from 'node:http';
import { pause } from '../../../shared/abort.ts';
import { stopWorker } from './worker.ts';

/**
 * The orderly end on SIGTERM and SIGINT: the port closes at once, the memory is free when the process ends.
 * A worker that ends before that, and without being told, is `onWorkerDeath`.
 */
export function endOnSignal(o: {
  ignoresSigterm: boolean;
  exitDelayMs: number;
  worker: ChildProcess | undefined;
  server: Server;
  onSignal: () => void;
  onWorkerDeath: () => void;
}): void {
  let isEnding = false;
  const end = async (): Promise<void> => {
    if (isEnding) return;
    isEnding = true;
    o.onSignal();
    o.server.close();
    o.server.closeAllConnections();
    await pause(o.exitDelayMs, new AbortController().signal);
    if (o.worker) await stopWorker(o.worker);
    process.exit(0);
  };
  o.worker?.once('exit', () => {
    if (!isEnding) o.onWorkerDeath();
  });
  // `void`: nothing in it can fail, and it ends the process.
  process.on('SIGINT', () => void end());
  process.on('SIGTERM', () => {
    if (!o.ignoresSigterm) void end();
  });
}
