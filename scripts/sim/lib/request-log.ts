import { appendFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';

/**
 * One HTTP exchange as the engine saw it, a line of `--request-log`. Times are ms since 1970 with fractions, from the
 * monotonic clock of the process: lines of several engines on one machine can be compared.
 */
export type LoggedRequest = {
  method: string;
  path: string;
  status: number;
  /** Its head was read. */
  arrivedMs: number;
  /** The last byte of the answer went to the kernel, or the client was found to have gone. */
  answeredMs: number;
};

/** Appends one line for each answered request. Undefined where no file was asked for. */
export function requestLog(file: string | undefined): ((line: LoggedRequest) => void) | undefined {
  return file === undefined ? undefined : (line) => appendFileSync(file, `${JSON.stringify(line)}\n`);
}

export function nowMs(): number {
  return performance.timeOrigin + performance.now();
}
