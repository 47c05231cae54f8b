import type { IncomingHttpHeaders, IncomingMessage, OutgoingHttpHeaders } from 'node:http';
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Deadline } from './abort.ts';

/** The pinned certificate of a host and the fixed name in it. */
export type Tls = { ca: string; servername: string };

export type HttpOptions = {
  method?: 'GET' | 'POST' | 'PUT' | 'DELETE';
  headers?: OutgoingHttpHeaders;
  body?: Buffer | string | Readable;
  signal: AbortSignal;
  /** The whole exchange, last byte of the answer included, must end within this time. */
  deadlineMs: number;
  tls?: Tls;
};

export type HttpAnswer = { status: number; headers: IncomingHttpHeaders; body: IncomingMessage };

/**
 * One HTTP exchange over node:http, never fetch: fetch gives up after 300 s without headers and cannot pin a certificate.
 * Rejects with the signal's reason, a TimeoutError, or the socket's own error; any status resolves.
 * The caller reads or destroys `body`.
 */
export async function openHttp(
  url: string,
  { method = 'GET', headers = {}, body, signal, deadlineMs, tls }: HttpOptions,
): Promise<HttpAnswer> {
  // Not AbortSignal.any with a time-out signal: Node 20 may collect that one as garbage, and it never fires.
  const limit = new Deadline({ ms: deadlineMs, signal });
  try {
    limit.signal.throwIfAborted();
    const send = url.startsWith('https:') ? httpsRequest : httpRequest;
    // agent: false gives each exchange its own connection: none is left open and none is found stale.
    const request = send(url, { method, headers: sized(headers, body), signal: limit.signal, agent: false, ...tls });
    const answer = new Promise<IncomingMessage>((resolve, reject) => {
      request.once('response', resolve);
      request.on('error', (error) => reject(limit.signal.aborted ? (limit.signal.reason as Error) : error)); // a reason is `any`
    });
    if (body instanceof Readable) {
      // A broken upload also rejects `answer`, which is what the caller sees; a server may also answer before it read all.
      pipeline(body, request).catch(() => undefined);
    } else request.end(body);
    const response = await answer;
    response.once('close', () => limit[Symbol.dispose]());
    return { status: response.statusCode ?? 0, headers: response.headers, body: response };
  } catch (error) {
    limit[Symbol.dispose]();
    throw error;
  }
}

/** Reads a whole body of at most `maxBytes`; more is an error, not a cut. */
export async function readBody(answer: HttpAnswer, { maxBytes }: { maxBytes: number }): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new Error(`answer is larger than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** One exchange with its whole body, for small answers. */
export async function fetchBody(
  url: string,
  options: HttpOptions & { maxBytes: number },
): Promise<{ status: number; headers: IncomingHttpHeaders; body: Buffer }> {
  const answer = await openHttp(url, options);
  return { status: answer.status, headers: answer.headers, body: await readBody(answer, options) };
}

function sized(headers: OutgoingHttpHeaders, body: Buffer | string | Readable | undefined): OutgoingHttpHeaders {
  if (body === undefined || body instanceof Readable) return headers;
  return { 'content-length': Buffer.byteLength(body), ...headers };
}
