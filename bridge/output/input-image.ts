import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { z } from 'zod';
import { AppError, errorCode } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import { Uuid } from '../../shared/job.ts';
import { LIMITS } from '../../shared/limits.ts';
import { readTextChunks } from '../../shared/png-text.ts';
import { imageKind } from './image-bytes.ts';

export type InputImage = {
  path: string;
  sha256: string;
  bytes: number;
  format: ImageFormat;
  /** The image made by gantry that this file says it is. */
  imageId: string | undefined;
};

/** Our text stands right behind the head of a PNG: what follows needs no look. */
const TEXT_BYTES = 256 * 1024;
const OwnText = z.object({ jobId: Uuid });

/** The whole of a picture, for whoever shows it. */
export type Picture = InputImage & { content: Buffer };

/**
 * Looks at a picture to edit: PNG, JPEG or WebP by its first bytes, and not too large. Anything else is refused here,
 * so that no other file of the laptop ever reaches a host. `path` was already checked against the allowed roots.
 */
export async function readInputImage(path: string): Promise<InputImage> {
  const { content: _, ...image } = await readPicture(path, { maxBytes: LIMITS.inputBytes.value });
  return image;
}

/** As `readInputImage`, with its bytes. */
export async function readPicture(path: string, { maxBytes }: { maxBytes: number }): Promise<Picture> {
  const file = await openRegular(path);
  try {
    const { size } = await file.stat();
    if (size > maxBytes) {
      const why = `it has ${mebibytes(size)} MiB and ${mebibytes(maxBytes)} MiB is the most`;
      throw invalid(path, why, 'Make it smaller.');
    }
    const content = await file.readFile();
    const kind = imageKind(content);
    if (kind === undefined) throw invalid(path, 'it is not an image', 'Give a PNG, JPEG or WebP file.');
    if ('refused' in kind) throw invalid(path, `it is a ${kind.refused} file`, 'Export it as PNG, JPEG or WebP first.');
    const sha256 = createHash('sha256').update(content).digest('hex');
    return { path, sha256, bytes: content.length, format: kind.format, imageId: imageIdIn(content), content };
  } finally {
    await file.close();
  }
}

/** A file may say anything of itself, so only what is an id counts. */
function imageIdIn(content: Buffer): string | undefined {
  const own = readTextChunks(content.subarray(0, TEXT_BYTES)).find(({ keyword }) => keyword === 'gantry');
  try {
    return own && OwnText.safeParse(JSON.parse(own.text)).data?.jobId;
  } catch {
    return undefined; // another program's chunk of that name
  }
}

async function openRegular(path: string): Promise<FileHandle> {
  let file: FileHandle;
  try {
    // The path is a real one: a link in its last place appeared after the check. NONBLOCK: a pipe must not hang the tool.
    file = await open(path, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    const code = errorCode(error) ?? '';
    if (code === 'ENOENT')
      throw new AppError('INPUT_INVALID', `Image file not found: ${path}. Check the path.`, { cause: error });
    throw invalid(path, `it cannot be opened (${code})`, 'Check its permissions.');
  }
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw invalid(path, 'it is not a file', 'Give the path of one image.');
}

function invalid(path: string, why: string, next: string): AppError {
  return new AppError('INPUT_INVALID', `Image ${path} cannot be used: ${why}. ${next}`);
}

function mebibytes(bytes: number): string {
  return (bytes / 1024 ** 2).toFixed(1).replace(/\.0$/, '');
}
