import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { AppError, errorCode } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { ResultStore } from '../job/result-store.ts';
import { parseRange } from './http-range.ts';

const CONTENT_TYPE: Record<ImageFormat, string> = { png: 'image/png', jpg: 'image/jpeg', webp: 'image/webp' };

/** Large enough that the calls do not count, small enough that many at once do not. */
const PIECE_BYTES = 256 * 1024;

export type ResultRequest = { tokenId: string; jobId: string; part: 'image' | 'preview' };

/** Sends a stored result, or the bytes of it that are still missing at the other end. ETag is the image's sha256. */
export async function sendResult(
  { request, response, results }: { request: IncomingMessage; response: ServerResponse; results: ResultStore },
  { tokenId, jobId, part }: ResultRequest,
): Promise<void> {
  const found = results.find(tokenId, jobId);
  if (found === undefined) throw notFound();
  await using file = await openStored(part === 'image' ? found.path : found.previewPath);
  const { size } = await file.stat();
  const etag = part === 'image' ? `"${found.sha256}"` : `"${found.sha256}-preview"`;
  const headers: OutgoingHttpHeaders = {
    'content-type': part === 'image' ? CONTENT_TYPE[found.format] : 'image/jpeg',
    'accept-ranges': 'bytes',
    'cache-control': 'private, no-store',
    'x-content-type-options': 'nosniff',
    etag,
  };
  if (request.headers['if-none-match'] === etag) return void response.writeHead(304, headers).end();
  const range = rangeOf(request, { etag, size });
  if (range.kind === 'unsatisfiable') {
    return void response.writeHead(416, { ...headers, 'content-range': `bytes */${size}` }).end();
  }
  const { start, end } = range.kind === 'part' ? range : { start: 0, end: size - 1 };
  const partial = range.kind === 'part' ? { 'content-range': `bytes ${start}-${end}/${size}` } : {};
  response.writeHead(range.kind === 'part' ? 206 : 200, { ...headers, ...partial, 'content-length': end - start + 1 });
  if (request.method === 'HEAD') return void response.end();
  await send(file, response, { start, end });
}

/** Through one buffer, however large the file: the next piece is read when the last one is on its way. */
async function send(
  file: FileHandle,
  response: ServerResponse,
  { start, end }: { start: number; end: number },
): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, end - start + 1));
  for (let at = start; at <= end;) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, end - at + 1), at);
    if (bytesRead === 0) throw new Error('a stored result is shorter than it was');
    await sent(response, buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
  response.end();
}

/** Rejects when the other end has gone, which no write tells that never ends. */
async function sent(response: ServerResponse, bytes: Buffer): Promise<void> {
  let onClose = (): void => undefined;
  const gone = new Promise<never>((_, reject) => {
    onClose = () => reject(new Error('the connection was closed before the result was sent'));
    response.once('close', onClose);
  });
  const written = new Promise<void>((resolve, reject) => {
    if (response.destroyed) return void reject(new Error('the connection is closed'));
    response.write(bytes, (error) => (error instanceof Error ? reject(error) : resolve()));
  });
  try {
    await Promise.race([written, gone]);
  } finally {
    response.off('close', onClose);
  }
}

/** A range of another version of the file would tear it: then the whole file is sent. */
function rangeOf(
  request: IncomingMessage,
  { etag, size }: { etag: string; size: number },
): ReturnType<typeof parseRange> {
  const condition = request.headers['if-range'];
  if (condition !== undefined && condition !== etag) return { kind: 'whole' };
  return parseRange(request.headers.range, size);
}

async function openStored(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (error) {
    if (errorCode(error) === 'ENOENT') throw notFound(); // deleted since it was found
    throw error;
  }
}

/** One text for unknown, foreign and deleted results. */
function notFound(): AppError {
  return new AppError('JOB_NOT_FOUND', 'There is no such result. It was acknowledged, it expired, or it never was.');
}
