import { createHash } from 'node:crypto';
import type Sharp from 'sharp';
import { advance, Canvas, type Colour, lineHeight, wrapped } from './canvas.ts';

export type PictureFormat = 'png' | 'jpeg' | 'webp';
export type Size = { width: number; height: number };

/** What a picture tells the person who looks at it. */
export type PictureFacts = {
  prompt: string;
  seed: number;
  steps: number;
  model: string;
  host: string;
  gpu: string;
};

const WHITE: Colour = [255, 255, 255];
const PALE: Colour = [214, 222, 235];
const DARK: Colour = [12, 16, 28];
const AMBER: Colour = [255, 190, 60];

/** A picture made of nothing but the request: the same prompt, seed and size give the same background again. */
export async function drawPicture(
  facts: PictureFacts,
  { width, height, format }: Size & { format: PictureFormat },
): Promise<Buffer> {
  const canvas = new Canvas({ width, height });
  paintBackground(canvas, `${facts.prompt}\n${facts.seed}`);
  paintCaption(canvas, facts, { sizeText: `${width} x ${height}`, isBanner: false });
  return encode(canvas, format);
}

/** The input picture in its own size, with the wish written on a banner at its lower edge. */
export async function drawEdit(
  input: Buffer,
  facts: PictureFacts,
  { size, format }: { size?: Size; format: PictureFormat },
): Promise<Buffer> {
  const sharp = await painter();
  const upright = sharp(input).rotate().removeAlpha().toColourspace('srgb');
  const sized = size ? upright.resize(size.width, size.height, { fit: 'cover' }) : upright;
  const { data, info } = await sized.raw().toBuffer({ resolveWithObject: true });
  const canvas = new Canvas({ width: info.width, height: info.height, pixels: data });
  paintCaption(canvas, facts, { sizeText: `${info.width} x ${info.height}`, isBanner: true });
  return encode(canvas, format);
}

/** What comes out of a model without weights: noise, in which nothing of the prompt is left. */
export async function drawNoise(
  facts: PictureFacts,
  { size, format }: { size: Size; format: PictureFormat },
): Promise<Buffer> {
  const canvas = new Canvas(size);
  const random = randomFrom(`${facts.prompt}\n${facts.seed}`);
  for (let at = 0; at < canvas.pixels.length; at += 1) canvas.pixels[at] = random() * 256;
  paintBadge(canvas, smallestLetters(canvas));
  return encode(canvas, format);
}

/** The size of the picture once it is turned upright. */
export async function pictureSize(input: Buffer): Promise<Size> {
  const sharp = await painter();
  const { width, height, orientation = 1 } = await sharp(input).metadata();
  return orientation >= 5 ? { width: height, height: width } : { width, height };
}

function paintBackground(canvas: Canvas, text: string): void {
  const random = randomFrom(text);
  const hue = random() * 360;
  const top = fromHue(hue, 0.55, 0.62);
  const bottom = fromHue(hue + 40 + random() * 80, 0.6, 0.3);
  for (let row = 0; row < canvas.height; row += 1) {
    canvas.fillRectangle(0, row, canvas.width, 1, mixed(top, bottom, row / canvas.height));
  }
  const extent = Math.min(canvas.width, canvas.height);
  for (let count = 0; count < 7; count += 1) {
    const colour = fromHue(hue + random() * 180, 0.7, 0.45 + random() * 0.3);
    const radius = extent * (0.08 + random() * 0.26);
    canvas.fillCircle(random() * canvas.width, random() * canvas.height, radius, colour, 0.35);
  }
}

/** The word SIMULATED, the prompt, and below it the facts, in the largest letters that fit. */
function paintCaption(
  canvas: Canvas,
  facts: PictureFacts,
  { sizeText, isBanner }: { sizeText: string; isBanner: boolean },
): void {
  const { width, height } = canvas;
  const margin = marginOf(canvas);
  const details = [
    `seed ${facts.seed} - ${sizeText} - ${facts.steps} steps`,
    `model ${facts.model}`,
    `host ${facts.host} - ${facts.gpu}`,
  ];
  const small = smallestLetters(canvas);
  const detailLines = details.flatMap((line) => wrapped(line, columnsAt(small, width, margin)));
  const detailsHeight = detailLines.length * lineHeight(small);
  const room = (isBanner ? height * 0.45 : height * 0.8) - detailsHeight - 2 * margin;
  const { unit, lines } = largestFit(facts.prompt, { width: width - 2 * margin, height: room, smallest: small });
  const boxHeight = lines.length * lineHeight(unit) + detailsHeight + 2.5 * margin;
  const boxTop = height - boxHeight;
  canvas.fillRectangle(0, boxTop, width, boxHeight, DARK, isBanner ? 1 : 0.55);
  lines.forEach((line, index) =>
    canvas.drawText(line, margin, boxTop + margin + index * lineHeight(unit), unit, WHITE),
  );
  const detailsTop = height - margin - detailsHeight;
  detailLines.forEach((line, index) =>
    canvas.drawText(line, margin, detailsTop + index * lineHeight(small), small, PALE),
  );
  paintBadge(canvas, small);
}

function paintBadge(canvas: Canvas, small: number): void {
  const margin = marginOf(canvas);
  const badge = small * 1.5;
  canvas.fillRectangle(margin, margin, advance(badge) * 9 + badge * 5, lineHeight(badge) + badge * 4, DARK, 0.8);
  canvas.drawText('SIMULATED', margin + badge * 3, margin + badge * 3.5, badge, AMBER);
}

function marginOf({ width, height }: Size): number {
  return Math.round(Math.min(width, height) * 0.05);
}

function smallestLetters(canvas: Size): number {
  return Math.max(1, Math.floor((canvas.width - 2 * marginOf(canvas)) / advance(44)));
}

function columnsAt(unit: number, width: number, margin: number): number {
  return Math.max(1, Math.floor((width - 2 * margin) / advance(unit)));
}

function largestFit(
  text: string,
  { width, height, smallest }: { width: number; height: number; smallest: number },
): { unit: number; lines: string[] } {
  for (let unit = smallest * 3; unit > smallest; unit -= 1) {
    const lines = wrapped(text, Math.max(1, Math.floor(width / advance(unit))));
    if (lines.length * lineHeight(unit) <= height) return { unit, lines };
  }
  const lines = wrapped(text, Math.max(1, Math.floor(width / advance(smallest))));
  const fitting = Math.max(0, Math.floor(height / lineHeight(smallest)));
  return { unit: smallest, lines: lines.slice(0, fitting) };
}

async function encode(canvas: Canvas, format: PictureFormat): Promise<Buffer> {
  const { width, height, pixels } = canvas;
  const sharp = await painter();
  const image = sharp(pixels, { raw: { width, height, channels: 3 } });
  if (format === 'jpeg') return image.jpeg({ quality: 90 }).toBuffer();
  if (format === 'webp') return image.webp({ quality: 90, effort: 0 }).toBuffer();
  return image.png({ compressionLevel: 2 }).toBuffer();
}

/** Loaded with the first picture, because it takes 100 ms and many a simulated process never draws one. */
async function painter(): Promise<typeof Sharp> {
  const { default: sharp } = await import('sharp');
  // Several simulated engines share one machine: each keeps to one thread and keeps nothing.
  sharp.concurrency(1);
  sharp.cache(false);
  return sharp;
}

/** Numbers in 0..1 that depend on the text alone. */
function randomFrom(text: string): () => number {
  let block = createHash('sha256').update(text).digest();
  let used = 0;
  return () => {
    if (used + 4 > block.length) {
      block = createHash('sha256').update(block).digest();
      used = 0;
    }
    used += 4;
    return block.readUInt32LE(used - 4) / 2 ** 32;
  };
}

function mixed(from: Colour, to: Colour, share: number): Colour {
  return [
    from[0] + (to[0] - from[0]) * share,
    from[1] + (to[1] - from[1]) * share,
    from[2] + (to[2] - from[2]) * share,
  ];
}

/** HSL to RGB; hue in degrees, the others 0..1. */
function fromHue(hue: number, saturation: number, lightness: number): Colour {
  const amplitude = saturation * Math.min(lightness, 1 - lightness);
  const channel = (offset: number): number => {
    const k = (offset + hue / 30) % 12;
    return 255 * (lightness - amplitude * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  };
  return [channel(0), channel(8), channel(4)];
}
