import { readFile } from 'node:fs/promises';
import sharp from 'sharp';
import { z } from 'zod';
import { readTextChunks } from '../../shared/png-text.ts';

/** What a picture on disk says of itself: its pixels, read to the last, and the chunk that the agent wrote into it. */
export type Picture = {
  width: number;
  height: number;
  prompt: string;
  model: string;
  jobId: string;
  gpu: string;
  runMs: number;
};

const Origin = z.object({
  jobId: z.string(),
  gpu: z.string(),
  runMs: z.number(),
  request: z.object({ model: z.string(), prompt: z.string() }),
});

/** Throws where the file is not there or not whole. */
export async function readPicture(path: string): Promise<Picture> {
  const bytes = await readFile(path);
  const { info } = await sharp(bytes, { failOn: 'truncated' }).raw().toBuffer({ resolveWithObject: true });
  const chunk = readTextChunks(bytes).find(({ keyword }) => keyword === 'gantry');
  const { request, ...origin } = Origin.parse(JSON.parse(chunk?.text ?? '{}'));
  return { width: info.width, height: info.height, ...request, ...origin };
}
