import { performance } from 'node:perf_hooks';
import { pause } from '../../../shared/abort.ts';

const CHUNK_BYTES = 65_536;
const TICK_MS = 10;
/** The share of the time that goes into writing: requests are answered in the rest. */
const LONGEST_WRITE_MS = 40;
/** What a slow reader did not take is not written later: the flood has its rate, not its sum. */
const LONGEST_DEBT_MS = 200;

/** Writes log lines to stderr at this rate for as long as the process lives, or as fast as the reader takes them. */
export async function floodLog(megabytesPerSecond: number): Promise<never> {
  const chunk = linesOf(CHUNK_BYTES);
  const bytesPerMs = megabytesPerSecond * 1000;
  const never = new AbortController().signal;
  let dueBytes = 0;
  for (let lastMs = performance.now(); ;) {
    await pause(TICK_MS, never);
    const nowMs = performance.now();
    dueBytes = Math.min(dueBytes + (nowMs - lastMs) * bytesPerMs, LONGEST_DEBT_MS * bytesPerMs);
    lastMs = nowMs;
    // A write to a file or a pipe blocks until it is done.
    while (dueBytes >= chunk.length && performance.now() - nowMs < LONGEST_WRITE_MS) {
      process.stderr.write(chunk);
      dueBytes -= chunk.length;
    }
  }
}

function linesOf(bytes: number): Buffer {
  const line = `(APIServer pid=${process.pid}) DEBUG [diffusion_worker.py:402] Worker 0: ${'tensor '.repeat(16)}\n`;
  return Buffer.from(line.repeat(Math.ceil(bytes / line.length)));
}
