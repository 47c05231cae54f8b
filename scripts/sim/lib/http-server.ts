import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { nowMs, requestLog } from './request-log.ts';

export type Answer = { status: number; headers?: Record<string, string>; body: Buffer | string };

/** One request as the routes see it; `left` aborts when its connection closes. */
export type Asked = { request: IncomingMessage; path: string; peer: string; left: AbortSignal };

/** A server that gives each request to `answer` and writes what comes back; `answer` never throws. */
export function answeringServer(
  answer: (asked: Asked) => Promise<Answer>,
  /** Called when the last byte is sent, or the client is known to have gone. */
  onAnswered: (asked: Asked, answer: Answer) => void,
  { log }: { log?: string | undefined } = {},
): Server {
  const note = requestLog(log);
  // requestTimeout 0: an engine may take minutes to read and to answer.
  return createServer({ requestTimeout: 0, keepAliveTimeout: 5_000 }, (request, response) => {
    const arrivedMs = nowMs();
    const leaving = new AbortController();
    response.on('close', () => leaving.abort(new Error('the client has gone')));
    response.on('error', () => undefined); // the same, seen by a write
    const path = new URL(request.url ?? '/', 'http://host').pathname;
    const peer = `${request.socket.remoteAddress}:${request.socket.remotePort}`;
    const asked = { request, path, peer, left: leaving.signal };
    // Nothing in it fails: `answer` turns every failure into an answer.
    void answer(asked).then(async (result) => {
      let answeredMs: number | undefined;
      response.once('finish', () => (answeredMs = nowMs()));
      write(response, result);
      if (!response.closed) await once(response, 'close');
      answeredMs ??= nowMs();
      note?.({ method: request.method ?? '', path, status: result.status, arrivedMs, answeredMs });
      onAnswered(asked, result);
    });
  });
}

export function json(status: number, body: unknown, headers: Record<string, string> = {}): Answer {
  return { status, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) };
}

export async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk); // `any` by its own type
  return Buffer.concat(chunks);
}

/** The multipart body, by the parser that Node itself has for fetch. */
export async function formOf(request: IncomingMessage): Promise<FormData> {
  const headers = { 'content-type': request.headers['content-type'] ?? '' };
  return new Response(await bodyOf(request), { headers }).formData();
}

function write(response: ServerResponse, { status, headers, body }: Answer): void {
  response.writeHead(status, { server: 'uvicorn', ...headers, 'content-length': Buffer.byteLength(body) });
  response.end(body);
}
