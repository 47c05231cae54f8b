import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import { Sha256 } from '../../shared/job.ts';
import { LIMITS } from '../../shared/protocol.ts';
import type { TokenRef } from '../job/exchange.ts';
import type { InputStore } from '../job/input-store.ts';
import { sendProblem } from './problem.ts';

export type InputParts = { inputs: InputStore; inputArrived: (tokenId: string, sha256: string) => void };

/** Takes the bytes of an input image: 201 once it is stored, 200 when this token sent it before, 413 when it is too large. */
export async function receiveInput(
  { request, response }: { request: IncomingMessage; response: ServerResponse },
  { token, sha256, parts }: { token: TokenRef; sha256: string; parts: InputParts },
): Promise<void> {
  const { inputs, inputArrived } = parts;
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
    if (Number(request.headers['content-length'] ?? 0) > maxBytes) return refuseTooLarge(response);
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const body = new LimitedBody(request, maxBytes);
    try {
      await inputs.put(token.id, sha256, Readable.from(body), { maxBytes, signal: gone.signal });
    } catch (error) {
      if (body.isTooLarge) return refuseTooLarge(response);
      throw error;
    }
  }
  inputArrived(token.id, sha256);
  response.writeHead(isNew ? 201 : 200, { 'content-type': 'application/json' }).end(JSON.stringify({ sha256 }));
}

/** A body without a length is cut at the limit, and remembers that this is why it ended. */
class LimitedBody implements AsyncIterable<Buffer> {
  readonly #body: AsyncIterable<Buffer>;
  readonly #maxBytes: number;
  isTooLarge = false;

  constructor(body: AsyncIterable<Buffer>, maxBytes: number) {
    this.#body = body;
    this.#maxBytes = maxBytes;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    let bytes = 0;
    for await (const chunk of this.#body) {
      bytes += chunk.length;
      this.isTooLarge = bytes > this.#maxBytes;
      if (this.isTooLarge) throw new AppError('INPUT_INVALID', tooLargeText());
      yield chunk;
    }
  }
}

function refuseTooLarge(response: ServerResponse): void {
  sendProblem(response, { status: 413, code: 'INPUT_INVALID', message: tooLargeText() });
}

function tooLargeText(): string {
  return `An input image may have ${LIMITS.inputBytes.value / 1024 ** 2} MiB. Make it smaller or save it as JPEG.`;
}
