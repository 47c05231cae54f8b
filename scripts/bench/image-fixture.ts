import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';

export type Picture = { path: string; megabytes: number };

/** The two pictures that all rows about images move: 1.5 MB and 12 MB of PNG, the same in every run. */
export async function writePictures(directory: string): Promise<{ small: Picture; large: Picture }> {
  return {
    small: await write(join(directory, 'small.png'), 776),
    large: await write(join(directory, 'large.png'), 2_192),
  };
}

/** A gradient under noise, as a photograph is to zlib: about 2.5 bytes for each pixel. */
async function write(path: string, side: number): Promise<Picture> {
  const pixels = Buffer.alloc(side * side * 3);
  for (let at = 0, noise = 12_345; at < pixels.length; at += 1) {
    noise = (Math.imul(noise, 1_664_525) + 1_013_904_223) >>> 0;
    const pixel = Math.floor(at / 3);
    pixels[at] = ((pixel % side) + pixel / side) * (100 / side) + (noise >>> 28) * 2;
  }
  const png = await sharp(pixels, { raw: { width: side, height: side, channels: 3 } })
    .png()
    .toBuffer();
  await writeFile(path, png);
  return { path, megabytes: png.length / 1e6 };
}
