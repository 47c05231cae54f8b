import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { pipeline } from 'node:stream/promises';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { ResultStore } from '../job/result-store.ts';
import { parseRange } from './http-range.ts';

const CONTENT_TYPE: Record<ImageFormat, string> = { png: 'image/png', jpg: 'image/jpeg', webp: 'image/webp' };

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
  await pipeline(file.createReadStream({ start, end, autoClose: false }), response);
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
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') throw notFound(); // deleted since it was found
    throw error;
  }
}

/** One text for unknown, foreign and deleted results. */
function notFound(): AppError {
  return new AppError('JOB_NOT_FOUND', 'There is no such result. It was acknowledged, it expired, or it never was.');
}
