import { execFileSync } from 'node:child_process';
import { mkdir, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32, deflateSync } from 'node:zlib';
import type { Sharp } from 'sharp';
import sharp from 'sharp';

const SIGNATURE = Buffer.from('89504e470d0a1a0a', 'hex');
/** Found nowhere but in files that carry something behind their picture. */
export const STOWAWAY = '<script>stowaway-7f3a</script>';

export type HostileFile = { name: string; path: string; says: RegExp };

/** Files that are no picture, or one that must not be decoded, with what has to be said about each. */
export async function writeHostileFiles(directory: string): Promise<HostileFile[]> {
  await mkdir(directory, { recursive: true });
  const png = await picture().png().toBuffer();
  const jpeg = await picture().jpeg().toBuffer();
  const webp = await picture().webp().toBuffer();
  const broken = /^INPUT_INVALID: .*(cannot be decoded|damaged|not an image)/s;
  const contents: [string, Buffer | string, RegExp][] = [
    ['bomb of 900 megapixels.png', bomb(), /^INPUT_INVALID: .*more than 50 megapixels/s],
    ['head of 4 gigapixels.png', pngOf([head(65_535, 65_535, 8)]), /^INPUT_INVALID: /],
    ['truncated.png', png.subarray(0, png.length / 2), broken],
    ['truncated.jpg', jpeg.subarray(0, jpeg.length / 3), broken],
    ['truncated.webp', webp.subarray(0, webp.length / 2), broken],
    ['signature only.png', SIGNATURE, broken],
    ['chunk longer than the file.png', Buffer.concat([SIGNATURE, Buffer.from('ffffffff49484452', 'hex')]), broken],
    ['text behind the mark of a JPEG.jpg', `\xff\xd8\xff${STOWAWAY}`.repeat(100), broken],
    ['empty.png', '', /^INPUT_INVALID: .*not an image/s],
    ['drawing.svg', svg(), /^INPUT_INVALID: .*SVG/s],
    ['drawing named as a picture.png', svg(), /^INPUT_INVALID: .*SVG/s],
    ['ten thousand frames.gif', gif(10_000), /^INPUT_INVALID: .*GIF/s],
    ['ten thousand frames.png', gif(10_000), /^INPUT_INVALID: .*GIF/s],
    ['key named as a picture.png', '-----BEGIN OPENSSH PRIVATE KEY-----\n', /^INPUT_INVALID: .*not an image/s],
  ];
  const files = contents.map(([name, content, says]) => ({ name, content, says, path: join(directory, name) }));
  for (const { path, content } of files) await writeFile(path, content, 'latin1');
  return [...files, ...(await oddFiles(directory, png))];
}

/** Pictures with something else inside: they may be used, but only their pixels. */
export async function writePolyglots(directory: string): Promise<string[]> {
  const png = await picture().png().toBuffer();
  const jpeg = await picture().jpeg().toBuffer();
  const text = chunk('tEXt', `Comment\0${STOWAWAY}`);
  const compressed = chunk('zTXt', Buffer.concat([Buffer.from('Comment\0\0'), deflateSync(Buffer.alloc(64e6))]));
  const contents: [string, Buffer][] = [
    ['page behind a picture.png', Buffer.concat([png, Buffer.from(STOWAWAY)])],
    ['page behind a picture.jpg', Buffer.concat([jpeg, Buffer.from(STOWAWAY)])],
    ['page in a text chunk.png', Buffer.concat([png.subarray(0, 33), text, png.subarray(33)])],
    ['64 MB in a text chunk.png', Buffer.concat([png.subarray(0, 33), compressed, png.subarray(33)])],
  ];
  const paths = contents.map(([name, content]) => ({ path: join(directory, name), content }));
  for (const { path, content } of paths) await writeFile(path, content);
  return paths.map(({ path }) => path);
}

async function oddFiles(directory: string, png: Buffer): Promise<HostileFile[]> {
  const at = (name: string): string => join(directory, name);
  await writeFile(at('too large.png'), png);
  await truncate(at('too large.png'), 33 * 1024 ** 2);
  await mkdir(at('directory.png'));
  execFileSync('mkfifo', [at('pipe.png')]);
  await symlink(at('round.png'), at('round.png'));
  const odd: [string, RegExp][] = [
    ['too large.png', /^INPUT_INVALID: .*33 MiB and 32 MiB is the most/s],
    ['directory.png', /^INPUT_INVALID: .*not a file/s],
    ['pipe.png', /^INPUT_INVALID: .*not a file/s],
    ['round.png', /^PATH_DENIED: .*circle/s],
    ['missing.png', /^INPUT_INVALID: .*not found/s],
  ];
  return odd.map(([name, says]) => ({ name, path: at(name), says }));
}

function picture(): Sharp {
  const noise = Buffer.from(Array.from({ length: 120 * 80 * 3 }, (_, at) => (at * 7 + (at >> 3) * 13) % 251));
  return sharp(noise, { raw: { width: 120, height: 80, channels: 3 } });
}

/** 30,000 x 30,000 black dots: 112 MB in a file of a hundred kilobytes, 2.7 GB as pixels. */
function bomb(): Buffer {
  const side = 30_000;
  const rows = deflateSync(Buffer.alloc(side * (side / 8 + 1)), { level: 1 });
  return pngOf([head(side, side, 1), chunk('IDAT', rows), chunk('IEND', '')]);
}

function pngOf(chunks: readonly Buffer[]): Buffer {
  return Buffer.concat([SIGNATURE, ...chunks]);
}

function head(width: number, height: number, depth: number): Buffer {
  const data = Buffer.alloc(13);
  data.writeUInt32BE(width, 0);
  data.writeUInt32BE(height, 4);
  data.writeUInt8(depth, 8); // grey, no interlace
  return chunk('IHDR', data);
}

function chunk(type: string, data: Buffer | string): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), Buffer.from(data)]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length - 4);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}

function svg(): string {
  const image = '<image href="file:///etc/passwd" width="100000" height="100000"/>';
  return `<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9">${image}</svg>`;
}

function gif(frames: number): Buffer {
  const start = Buffer.from('47494638396101000100800000ff000000000021f90400000000', 'hex');
  const frame = Buffer.from('2c00000000010001000002024401003b', 'hex').subarray(0, 15);
  return Buffer.concat([start, ...Array.from({ length: frames }, () => frame), Buffer.from(';')]);
}
