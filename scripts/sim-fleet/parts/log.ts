import type { Log } from '../../../shared/log.ts';
import { world } from '../world/world.ts';

/** Events that a program logs only where something happened that nobody foresaw. */
const DEFECTS = new Set(['job-defect', 'request-failed', 'job-work-failed', 'fleet-work-failed', 'desk-work-failed']);

/** In the place of pino: lines go to the trace, and what tells of a defect to `onDefect`. */
export function simulatedLog(onDefect: (event: string, error: unknown) => void): Log {
  const write =
    (level: string) =>
    (line: object): void => {
      const { event, err } = line as { event?: string; err?: unknown }; // every call passes an object with an event
      if (event !== undefined && DEFECTS.has(event)) onDefect(event, err ?? line);
      world().say('log', () => `${level} ${JSON.stringify(line, errorText)}`);
    };
  const log = { trace: write('trace'), debug: write('debug'), info: write('info'), warn: write('warn') };
  return { ...log, error: write('error'), fatal: write('fatal') } as unknown as Log; // what the product calls of it
}

function errorText(_key: string, value: unknown): unknown {
  return value instanceof Error ? `${value.name}: ${value.message}` : value;
}
