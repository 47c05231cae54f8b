// The only code of the agent that decodes pictures, in a process of its own: what they take of memory goes with it, and a
// picture that breaks the decoder breaks nothing else. Run by picture-process.ts; ends when that does.
import { open, writeFile } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import sharp from 'sharp';

// One picture at a time, row by row: nothing is worth keeping, and a second thread would have its own memory.
sharp.cache(false);
sharp.concurrency(1);

const PREVIEW_SIDE = 1_024;
const PIECE_BYTES = 256 * 1024;

process.on('disconnect', () => process.kill(process.pid, 'SIGKILL')); // the agent is gone: also in the midst of a picture
process.on('message', (asked) => void answer(asked));

/** Every request gets one answer: `{value}` or `{error, code}`; a code means that the disk failed, not the picture. */
async function answer(asked) {
  try {
    process.send({ value: await run(asked) });
  } catch (error) {
    process.send({ error: String(error.message).split('\n')[0], code: error.code });
  }
}

async function run(asked) {
  switch (asked.kind) {
    case 'check':
      return await check(asked);
    case 'encode':
      return await encode(asked);
    case 'clean':
      return await clean(asked);
  }
}

/** Decodes every pixel on the way to the preview: PNG has no shrinking on load, and its last row ends the stream. */
async function check({ path, previewPath, maxPixels }) {
  const source = { limitInputPixels: maxPixels, failOn: 'truncated' };
  const { width, height, format } = await sharp(path, source).metadata();
  if (!['png', 'jpeg', 'webp'].includes(format)) throw new Error(`its format is ${format}`);
  if (format === 'png') await checkChunks(path);
  // JPEG and WebP do shrink on load, which would miss a damaged end.
  if (format !== 'png') await sharp(path, source).stats();
  const preview = await sharp(path, source)
    .resize({ width: PREVIEW_SIDE, height: PREVIEW_SIDE, fit: 'inside', withoutEnlargement: true })
    .flatten({ background: '#ffffff' })
    .jpeg({ quality: 80 })
    .toBuffer();
  await writeFile(previewPath, preview, { mode: 0o600 });
  return { width, height, format };
}

/** The decoder looks only at what it needs: a text chunk that was damaged, or an end that is missing, it lets pass. */
async function checkChunks(path) {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const piece = Buffer.alloc(PIECE_BYTES);
    for (let at = 8, type = ''; at < size || type !== 'IEND';) {
      if (type === 'IEND' || at + 12 > size) throw new Error('its end is missing, or not the end');
      await file.read(piece, 0, 8, at);
      type = piece.toString('latin1', 4, 8);
      const end = at + 8 + piece.readUInt32BE(0);
      if (end + 4 > size) throw new Error('it is cut short');
      let sum = 0;
      for (let from = at + 4; from < end; from += PIECE_BYTES) {
        const { bytesRead } = await file.read(piece, 0, Math.min(PIECE_BYTES, end - from), from);
        sum = crc32(piece.subarray(0, bytesRead), sum);
      }
      await file.read(piece, 0, 4, end);
      if (sum !== piece.readUInt32BE(0)) throw new Error(`the checksum of its ${type} is wrong`);
      at = end + 4;
    }
  } finally {
    await file.close();
  }
}

async function encode({ path, to, format, maxPixels }) {
  const picture = sharp(path, { limitInputPixels: maxPixels, failOn: 'truncated' });
  if (format === 'jpg') picture.flatten({ background: '#ffffff' }).jpeg({ quality: 95 });
  else if (format === 'webp') picture.webp({ quality: 90 });
  else picture.png();
  await writeFile(to, await picture.toBuffer(), { mode: 0o600 });
}

/** Upright and without metadata: nothing of the uploaded file itself but its pixels. */
async function clean({ path, to, maxPixels }) {
  const png = await sharp(path, { limitInputPixels: maxPixels, failOn: 'error' })
    .autoOrient()
    .toColourspace('srgb')
    .png({ compressionLevel: 3 })
    .toBuffer();
  await writeFile(to, png, { mode: 0o600 });
}
