import { readFile } from 'node:fs/promises';
import type { LoggedRequest } from '../../sim/lib/request-log.ts';

export type Span = { fromMs: number; toMs: number };

/** The images that one engine made, in the order in which they were asked for; the last line may be half written. */
export async function readImages(file: string): Promise<LoggedRequest[]> {
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return ''; // an engine that was never asked
    throw error;
  });
  return imagesIn(text);
}

export function imagesIn(text: string): LoggedRequest[] {
  const lines = text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
  return lines
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as LoggedRequest) // our own simulator wrote it
    .filter(({ path, status }) => path.startsWith('/v1/images/') && status === 200)
    .sort((a, b) => a.arrivedMs - b.arrivedMs);
}

export function within(requests: readonly LoggedRequest[], { fromMs, toMs }: Span): LoggedRequest[] {
  return requests.filter(({ arrivedMs }) => arrivedMs >= fromMs && arrivedMs <= toMs);
}

/** From each last byte to the next request at the same engine: both belong to one batch, so that work was waiting. */
export function gapsMs(requests: readonly LoggedRequest[]): number[] {
  return requests.slice(1).map(({ arrivedMs }, index) => arrivedMs - (requests[index]?.answeredMs ?? arrivedMs));
}

export function runsMs(requests: readonly LoggedRequest[]): number[] {
  return requests.map(({ arrivedMs, answeredMs }) => answeredMs - arrivedMs);
}
