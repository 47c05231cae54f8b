import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError } from '../../shared/errors.ts';
import type { AgentTransfers } from './agent-transfers.ts';

/** Without a byte for so long the connection is half open: the network went away, or the laptop slept. */
const SILENCE_MS = 20_000;
/** Waits before going on, and how often in a row without one more byte: some seconds, then the fetcher decides. */
const AGAIN = { firstMs: 100, maxMs: 2_000 };
const MOST_TRIES = 7;

export type ResultBytesOptions = {
  jobId: string;
  sha256: string;
  bytes: number;
  signal: AbortSignal;
  silenceMs?: number;
};

/**
 * The bytes of a stored result, in their order and each once. After a broken transfer it goes on with the byte at which
 * that stopped, so whoever writes them down keeps its file and its hash. It gives up where nothing came yet, where the
 * host has something else, and where nothing more comes.
 */
export async function* resultBytes(
  transfers: Transfers,
  { silenceMs = SILENCE_MS, ...o }: ResultBytesOptions,
): AsyncGenerator<Buffer> {
  let at = 0;
  for (let tries = 1; ; tries += 1) {
    try {
      for await (const chunk of transfer(transfers, { ...o, from: at, silenceMs })) {
        at += chunk.length;
        tries = 0;
        yield chunk; // what the reader throws does not come back here
      }
      return; // whole, or shorter than announced: whoever checks the length says so
    } catch (error) {
      if (o.signal.aborted || at === 0 || tries > MOST_TRIES || !isBroken(error)) throw error;
    }
    await pause(backoffMs(tries, { ...AGAIN, random: Math.random() }), o.signal);
  }
}

type Transfers = Pick<AgentTransfers, 'openResult'>;

/** One connection, for as long as it lasts. */
async function* transfer(
  transfers: Transfers,
  { jobId, silenceMs, ...o }: ResultBytesOptions & { from: number; silenceMs: number },
): AsyncGenerator<Buffer> {
  const { body } = await transfers.openResult(jobId, o);
  try {
    const chunks = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>; // no encoding is set, so its chunks are Buffers
    for (;;) {
      const next = await nextOf(chunks, { silenceMs, signal: o.signal });
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    body.destroy();
  }
}

/** The time counts only while somebody waits for bytes, not while the disk takes those before. */
async function nextOf(
  chunks: AsyncIterator<Buffer>,
  { silenceMs, signal }: { silenceMs: number; signal: AbortSignal },
): Promise<IteratorResult<Buffer>> {
  using silence = new Deadline({ ms: silenceMs, signal });
  return await untilAborted(chunks.next(), silence.signal);
}

/** Another connection may bring more. What the host itself said of the result stands. */
function isBroken(error: unknown): boolean {
  return !(error instanceof AppError) || error.code === 'AGENT_UNREACHABLE';
}
