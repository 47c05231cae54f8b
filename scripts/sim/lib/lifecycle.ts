import type { Server } from 'node:http';
import { pause } from '../../../shared/abort.ts';
import type { Workers } from './workers.ts';

/**
 * The orderly end on SIGTERM and SIGINT: the port closes at once, the memory is free when the process ends.
 * A worker that ends before that, and without being told, is `onWorkerDeath`.
 */
export function endOnSignal(o: {
  ignoresSigterm: boolean;
  exitDelayMs: number;
  noticesWorkerDeath: boolean;
  workers: Workers;
  server: Server;
  onSignal: () => void;
  onWorkerDeath: (how: string) => void;
}): void {
  let isEnding = false;
  const end = async (): Promise<void> => {
    if (isEnding) return;
    isEnding = true;
    o.onSignal();
    o.server.close();
    o.server.closeAllConnections();
    await pause(o.exitDelayMs, new AbortController().signal);
    await o.workers.stop();
    process.exit(0);
  };
  o.workers.onDeath((how) => {
    if (!isEnding && o.noticesWorkerDeath) o.onWorkerDeath(how);
  });
  // A log that nobody reads any more ends no server: Python's logging goes on without it.
  process.stderr.on('error', () => undefined);
  // `void`: nothing in it can fail, and it ends the process.
  process.on('SIGINT', () => void end());
  process.on('SIGTERM', () => {
    if (!o.ignoresSigterm) void end();
  });
}
