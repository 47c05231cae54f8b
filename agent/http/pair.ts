import type { IncomingMessage, ServerResponse } from 'node:http';
import { AppError } from '../../shared/errors.ts';
import type { PairAnswer } from '../../shared/protocol.ts';
import { PairRequest } from '../../shared/protocol.ts';
import { sendProblem } from './problem.ts';

/** Takes a code for a token, or throws AUTH_FAILED, or RATE_LIMITED where that address failed too often. */
export type Redeem = (asked: { code: string; name: string }, request: IncomingMessage) => Promise<PairAnswer>;

const MAX_BYTES = 4_096;

/**
 * Lets a laptop in that has the code of an invite. It needs a content type that no form of a web page can send, so that a
 * browser asks first, and is refused.
 */
export async function pair(
  { request, response }: { request: IncomingMessage; response: ServerResponse },
  redeem: Redeem,
): Promise<void> {
  if (!/^application\/json\b/i.test(request.headers['content-type'] ?? '')) {
    const message = 'Send application/json: {"code", "name"}.';
    return sendProblem(response, { status: 415, code: 'INVALID_ARGUMENT', message });
  }
  const parsed = PairRequest.safeParse(parseJson(await bodyOf(request)));
  if (!parsed.success) throw new AppError('INVALID_ARGUMENT', 'Send {"code", "name"}, each a short text.');
  const answer = await redeem(parsed.data, request);
  response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'no-store' });
  response.end(JSON.stringify(answer));
}

/** How long it may take is the connection's matter: without a token it ends soon. */
async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    const piece = chunk as Buffer; // a request without an encoding has Buffers
    bytes += piece.length;
    if (bytes > MAX_BYTES) throw new AppError('INVALID_ARGUMENT', `A pairing has at most ${MAX_BYTES} bytes.`);
    chunks.push(piece);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // no schema accepts it
  }
}
