import { pino } from 'pino';
import type { Logger } from 'pino';

export type Log = Logger;

/**
 * One JSON line per event: `log.info({ event: 'model-ready', model, tookMs })`.
 * The agent writes to stdout for the journal; the bridge writes to stderr, because its stdout belongs to MCP.
 */
export function createLog({ name, to, level }: { name: string; to: 'stdout' | 'stderr'; level: string }): Log {
  return pino(
    {
      name,
      level,
      redact: {
        paths: ['token', '*.token', 'authorization', '*.authorization', 'headers.authorization'],
        censor: '[redacted]',
      },
    },
    pino.destination({ dest: to === 'stdout' ? 1 : 2, sync: true }),
  );
}
