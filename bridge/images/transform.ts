import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import { nearest } from '../../shared/nearest.ts';

/** PURE. How an image is to be shown. Widths and heights are the most it may have: its shape is kept, and it is never enlarged. */
export type Transform = {
  format: ImageFormat;
  quality: number;
  width: number;
  height: number;
  /** In pixels of the original, before anything else. */
  crop: Crop | undefined;
};
export type Crop = { x: number; y: number; width: number; height: number };

/** What somebody asked for; the rest is filled in. */
export type Wish = { [K in keyof Transform]?: Transform[K] | undefined };

/** More pixels on a side than models look at are only cost. */
export const USUAL_SIDE = 1_568;
export const MAX_SIDE = 2_000;
const USUAL_QUALITY = 80;
/** No image that a model makes has a longer side. */
const MAX_PIXEL = 16_384;

/** The parameters of an address, in the order of its template. */
export const VIEW_PARAMETERS = [
  'format',
  'width',
  'height',
  'crop_x',
  'crop_y',
  'crop_w',
  'crop_h',
  'quality',
] as const;
type Parameter = (typeof VIEW_PARAMETERS)[number];

const FORMATS: Record<string, ImageFormat> = { jpg: 'jpg', jpeg: 'jpg', png: 'png', webp: 'webp' };

export function transformOf(wish: Wish): Transform {
  const isSized = wish.width !== undefined || wish.height !== undefined;
  const side = isSized ? MAX_SIDE : USUAL_SIDE;
  return {
    format: wish.format ?? 'jpg',
    quality: wish.quality ?? USUAL_QUALITY,
    width: wish.width ?? side,
    height: wish.height ?? side,
    crop: wish.crop,
  };
}

/** The query of an address. Unknown parameters and values out of range are refused: a view of something else is no answer. */
export function transformFromQuery(query: string): Transform {
  const values = new Map<Parameter, string>();
  for (const [name, value] of new URLSearchParams(query)) {
    if (!isParameter(name)) throw unknownParameter(name);
    if (values.has(name)) throw invalid(`${name} is given twice. Give it once.`);
    values.set(name, value);
  }
  const whole = (name: Parameter, least: number, most: number): number | undefined =>
    wholeNumber(name, { text: values.get(name), least, most });
  return transformOf({
    format: formatFrom(values.get('format')),
    quality: whole('quality', 1, 100),
    width: whole('width', 1, MAX_SIDE),
    height: whole('height', 1, MAX_SIDE),
    crop: cropFrom({
      x: whole('crop_x', 0, MAX_PIXEL),
      y: whole('crop_y', 0, MAX_PIXEL),
      width: whole('crop_w', 1, MAX_PIXEL),
      height: whole('crop_h', 1, MAX_PIXEL),
    }),
  });
}

/** The part of an image that is asked for, or the reason why it has no such part. */
export function checkCrop(crop: Crop, image: { width: number; height: number }): void {
  if (crop.x + crop.width <= image.width && crop.y + crop.height <= image.height) return;
  const asked = `${crop.width}x${crop.height} at ${crop.x},${crop.y}`;
  throw invalid(`The crop ${asked} reaches outside the image, which has ${image.width}x${image.height} pixels.`);
}

function cropFrom(crop: { [K in keyof Crop]: number | undefined }): Crop | undefined {
  const { x, y, width, height } = crop;
  if (width !== undefined && height !== undefined) return { x: x ?? 0, y: y ?? 0, width, height };
  if (Object.values(crop).every((value) => value === undefined)) return undefined;
  throw invalid('A crop needs crop_w and crop_h; crop_x and crop_y are 0 where they are left out.');
}

function formatFrom(text: string | undefined): ImageFormat | undefined {
  if (text === undefined) return undefined;
  const name = text.toLowerCase();
  if (Object.hasOwn(FORMATS, name)) return FORMATS[name];
  const near = nearest(name, Object.keys(FORMATS));
  throw invalid(`format must be one of jpg, png, webp.${near === undefined ? '' : ` Did you mean ${near}?`}`);
}

function wholeNumber(
  name: string,
  { text, least, most }: { text: string | undefined; least: number; most: number },
): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  const near = Number.isNaN(value) ? '' : ` Nearest valid ${name} is ${Math.min(most, Math.max(least, value))}.`;
  throw invalid(`${name} must be a whole number from ${least} to ${most}.${near}`);
}

function isParameter(name: string): name is Parameter {
  const known: readonly string[] = VIEW_PARAMETERS;
  return known.includes(name);
}

function unknownParameter(name: string): AppError {
  const near = nearest(name, VIEW_PARAMETERS);
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  return invalid(
    `Unknown parameter ${JSON.stringify(name.slice(0, 80))}.${hint} Valid: ${VIEW_PARAMETERS.join(', ')}.`,
  );
}

function invalid(sentence: string): AppError {
  return new AppError('INVALID_ARGUMENT', sentence);
}
