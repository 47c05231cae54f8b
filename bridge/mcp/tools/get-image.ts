import { basename } from 'node:path';
import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import { ImageFormat } from '../../../shared/job.ts';
import type { ImageEntry } from '../../images/image-entry.ts';
import type { Images } from '../../images/images.ts';
import type { Crop } from '../../images/transform.ts';
import { MAX_SIDE, transformOf } from '../../images/transform.ts';
import { metadataJson, noSuchImage, viewPicture, whyMissing } from '../picture-view.ts';
import { fileLink } from '../result-links.ts';
import type { ImageAnswer } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, READS } from '../tool.ts';

const side = z.int().min(1).max(MAX_SIDE).optional();

const input = z.strictObject({
  id: z.string().min(1).max(100).optional(),
  path: z.string().min(1).max(4_096).optional(),
  width: side,
  height: side,
  crop: z.array(z.number()).optional().describe('x, y, width, height'),
  format: ImageFormat.optional(),
  quality: z.int().min(1).max(100).optional(),
});

export const getImage = defineImageTool({
  name: 'get_image',
  title: 'Show an image',
  description: 'Show an image by id (its job_id) or path, cropped, scaled or converted, and how it was made.',
  annotations: READS,
  input,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<ImageAnswer> {
  const transform = transformOf({ ...args, crop: cropOf(args.crop) });
  const images = await context.images();
  const file = await fileOf(args, images);
  const view = await viewPicture(file, { transform, images, context });
  const { path, entry, shown, json, notes } = view;
  const made = entry && metadataJson(entry, { parents: await images.parentsOf(entry) });
  return {
    sentence: shown === undefined ? `${basename(path)} cannot be shown here.` : `This is ${basename(path)}.`,
    json: { status: 'success', file_path: path, ...made, ...json, notes: [...(entry?.result.notes ?? []), ...notes] },
    previews: shown === undefined ? [] : [{ data: shown.bytes.toString('base64'), mimeType: shown.mimeType }],
    links: [fileLink(path, view)],
  };
}

/** In pixels of the original. Its bounds are checked here and not in the schema, which every conversation pays for. */
function cropOf(numbers: readonly number[] | undefined): Crop | undefined {
  if (numbers === undefined) return undefined;
  const [x = -1, y = -1, width = 0, height = 0, ...more] = numbers;
  const isWhole = more.length === 0 && numbers.every((value) => Number.isSafeInteger(value));
  if (isWhole && Math.min(x, y) >= 0 && Math.min(width, height) >= 1) return { x, y, width, height };
  throw new AppError(
    'INVALID_ARGUMENT',
    'crop must be four whole numbers, x, y, width and height in pixels of the original; width and height are at least 1.',
  );
}

async function fileOf(
  { id, path }: z.output<typeof input>,
  images: Images,
): Promise<{ path: string; entry: ImageEntry | undefined }> {
  if ((id === undefined) === (path === undefined))
    throw new AppError('INVALID_ARGUMENT', 'Give either id, the id of an image that was made here, or path, a file.');
  if (path !== undefined) return { path, entry: undefined };
  const entry = id === undefined ? undefined : await images.entry(id);
  if (entry === undefined) throw noSuchImage(id ?? '');
  const located = await images.locate(entry);
  if (located.kind === 'missing') throw new AppError('INPUT_INVALID', whyMissing(entry));
  return { path: located.path, entry };
}
