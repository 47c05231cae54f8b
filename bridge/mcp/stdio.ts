import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import type { Server } from './sdk.ts';
import { StdioServerTransport } from './sdk.ts';

/** Longest line that is read. Inputs are paths, so nothing real comes near; above it the connection ends. */
const MAX_LINE_BYTES = 10 * 1024 * 1024;
/** A client that writes and closes at once, as a pipe in a shell does, still gets the answers that take no work. */
const LAST_WORDS_MS = 100;
/** A client kills a server that does not end in 2 s; this leaves room for the exit itself. */
const DETACH_MS = 1_500;

const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/**
 * Serves one client on stdin and stdout until it is gone: end of input, closed output, a signal, or a line too long.
 * Then `detach` has a moment to let go of the hosts. Resolves when the process can exit with 0. The SDK notices none of
 * this by itself.
 */
export async function serveStdio(server: Server, { detach }: { detach: () => Promise<void> }): Promise<void> {
  const transport = new StdioServerTransport(process.stdin, process.stdout, { maxBufferSize: MAX_LINE_BYTES });
  const gone = clientGone(transport);
  await server.connect(transport);
  if ((await gone) === 'end of input') await pause(LAST_WORDS_MS, new AbortController().signal);
  using deadline = new Deadline({ ms: DETACH_MS });
  try {
    await untilAborted(Promise.all([server.close(), detach()]), deadline.signal);
  } catch {
    // Whatever could not be let go in time is resumed from its manifest by the next bridge; nothing is lost by leaving.
  }
}

function clientGone(transport: StdioServerTransport): Promise<string> {
  return new Promise((resolve) => {
    process.stdin.once('end', () => resolve('end of input'));
    process.stdin.once('close', () => resolve('input closed'));
    // Without a listener a closed pipe is an uncaught exception.
    process.stdout.on('error', () => resolve('output closed'));
    process.stderr.on('error', () => undefined);
    transport.onclose = () => resolve('transport closed');
    for (const signal of SIGNALS) process.once(signal, () => resolve(signal));
  });
}
