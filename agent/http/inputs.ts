import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { Deadline, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { Sha256 } from '../../shared/job.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { TokenRef } from '../job/session.ts';
import type { InputStore } from '../job/input-store.ts';
import type { Problem } from './problem.ts';
import { sendProblem } from './problem.ts';

/** A body has to bring so many bytes, or its end, in each of these times. */
export type Pace = { bytes: number; withinMs: number };

/** 20 kB/s, in a quarter of a minute. */
export const UPLOAD_PACE: Pace = { bytes: 300_000, withinMs: 15_000 };

export type InputParts = {
  inputs: InputStore;
  inputArrived: (tokenId: string, sha256: string) => void;
  pace: Pace;
};

/** Takes the bytes of an input image: 201 once it is stored, 200 when this token sent it before, 413 or 408 when it is too large or too slow. */
export async function receiveInput(
  { request, response }: { request: IncomingMessage; response: ServerResponse },
  { token, sha256, parts }: { token: TokenRef; sha256: string; parts: InputParts },
): Promise<void> {
  const { inputs, inputArrived, pace } = parts;
  if (token.role !== 'operator') {
    const message = 'Sending images needs a token of role operator, and this one has role viewer.';
    return sendProblem(response, { status: 403, code: 'AUTH_FAILED', message });
  }
  if (!Sha256.safeParse(sha256).success) {
    throw new AppError(
      'INVALID_ARGUMENT',
      'The last part of the path must be the SHA-256 of the image, 64 hex digits.',
    );
  }
  const isNew = !inputs.has(token.id, sha256);
  if (isNew) {
    const maxBytes = LIMITS.inputBytes.value;
    if (Number(request.headers['content-length'] ?? 0) > maxBytes) return sendProblem(response, TOO_LARGE);
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const body = new UploadBody(request, pace);
    try {
      await inputs.put(token.id, sha256, Readable.from(body), { maxBytes, signal: gone.signal });
    } catch (error) {
      if (body.problem !== undefined) return sendProblem(response, body.problem);
      throw error;
    }
  }
  inputArrived(token.id, sha256);
  response.writeHead(isNew ? 201 : 200, { 'content-type': 'application/json' }).end(JSON.stringify({ sha256 }));
}

/** A body that is ended when it is too large, or when it comes more slowly than anybody would wait for. */
class UploadBody implements AsyncIterable<Buffer> {
  readonly #request: IncomingMessage;
  readonly #pace: Pace;
  /** Why it was ended. */
  problem: Problem | undefined;

  constructor(request: IncomingMessage, pace: Pace) {
    this.#request = request;
    this.#pace = pace;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    const chunks = this.#request.iterator({ destroyOnReturn: false }); // the answer needs the connection
    using tooSlow = new Deadline({ ms: this.#pace.withinMs });
    let [bytes, sinceRestart] = [0, 0];
    for (;;) {
      const next = await untilAborted(chunks.next(), tooSlow.signal).catch((error: unknown) => {
        throw tooSlow.isExpired ? this.#end(TOO_SLOW) : error;
      });
      if (next.done === true) return;
      const chunk = next.value as Buffer; // a request without an encoding has Buffers
      bytes += chunk.length;
      sinceRestart += chunk.length;
      if (bytes > LIMITS.inputBytes.value) throw this.#end(TOO_LARGE);
      if (sinceRestart >= this.#pace.bytes) {
        sinceRestart = 0;
        tooSlow.restart();
      }
      yield chunk;
    }
  }

  #end(problem: Problem): AppError {
    this.problem = problem;
    return new AppError(problem.code, problem.message);
  }
}

const TOO_LARGE: Problem = {
  status: 413,
  code: 'INPUT_INVALID',
  message: `An input image may have ${LIMITS.inputBytes.value / 1024 ** 2} MiB. Make it smaller or save it as JPEG.`,
};
const TOO_SLOW: Problem = {
  status: 408,
  code: 'TIMEOUT',
  message: 'The input image came too slowly. Send it again when the connection is better, or make it smaller.',
};
