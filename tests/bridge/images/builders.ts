import { randomUUID } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ImageEntry } from '../../../bridge/images/image-entry.ts';
import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { toCheckedLine } from '../../../shared/checked-line.ts';

export const MADE_AT = '2026-11-21T10:00:00.000Z';

/** An image as the index has it; `second` tells when it was made. */
export function entry(
  o: { id?: string; second?: number; prompt?: string; path?: string; sha256?: string } = {},
): ImageEntry {
  const { id = randomUUID(), second = 0, prompt = 'a fox', path = `/pictures/${id}.png`, sha256 = '0'.repeat(64) } = o;
  return {
    id,
    version: 1,
    batchId: randomUUID(),
    createdAt: new Date(Date.parse(MADE_AT) + second * 1_000).toISOString(),
    path,
    previewPath: null,
    host: 'attic',
    result: { sha256, bytes: 10, width: 64, height: 64, format: 'png', runMs: 500, gpu: 'gpu', notes: [] },
    request: {
      kind: 'generate',
      model: 'some/model',
      prompt,
      steps: 9,
      guidance: { field: 'guidance_scale', value: 1 },
      seed: 7,
      format: 'png',
      width: 64,
      height: 64,
    },
    inputs: [],
  };
}

/** A batch of these images as its manifest has it, over or not. `more` jobs have no image yet. */
export async function writeBatch(
  stateDir: string,
  entries: readonly ImageEntry[],
  { isEnded = true, more = 0 }: { isEnded?: boolean; more?: number } = {},
): Promise<{ batchId: string; manifest: string }> {
  const batchId = entries[0]?.batchId ?? randomUUID();
  const directory = join(stateDir, 'batches', batchId);
  await mkdir(directory, { recursive: true });
  const manifest = join(directory, 'manifest.jsonl');
  await writeFile(manifest, linesOf(batchId, entries, { isEnded, more }).map(toCheckedLine).join(''));
  return { batchId, manifest };
}

export function savedLine(one: ImageEntry): ManifestLine {
  return {
    type: 'saved',
    jobId: one.id,
    host: one.host,
    attempt: 1,
    path: one.path,
    previewPath: one.previewPath,
    result: one.result,
    endedInMs: Date.parse(one.createdAt) - Date.parse(MADE_AT),
  };
}

export const END: ManifestLine = { type: 'ended', state: 'success', elapsedMs: 1, quality: null };

function linesOf(
  batchId: string,
  entries: readonly ImageEntry[],
  o: { isEnded: boolean; more: number },
): ManifestLine[] {
  const waiting = Array.from({ length: o.more }, () => entry());
  const jobs = [...entries, ...waiting].map((one, index): ManifestLine => ({
    type: 'job',
    jobId: one.id,
    index,
    request: one.request,
    inputFiles: one.inputs.map(({ path }) => path),
    directory: '/pictures',
    name: null,
  }));
  const header: ManifestLine = {
    type: 'batch',
    version: 1,
    batchId,
    kind: 'generate',
    class: 'interactive',
    order: 'fifo',
    maxConcurrent: null,
    host: null,
    client: 'test',
    createdAt: MADE_AT,
    total: jobs.length,
  };
  return [header, ...jobs, ...entries.map(savedLine), ...(o.isEnded ? [END] : [])];
}
