import type sharpPackage from 'sharp';
import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import { Permits } from '../fleet/permits.ts';
import { checkCrop } from './transform.ts';
import type { Transform } from './transform.ts';

export type Rendered = {
  bytes: Buffer;
  mimeType: string;
  width: number;
  height: number;
  quality: number;
  /** It had to be made smaller or coarser than asked for, to fit into an answer. */
  isReduced: boolean;
};

type Sharp = typeof sharpPackage;
type RendererOptions = {
  /** Undefined where this installation has no sharp. It is native and slow to load, so nothing needs it before the first image. */
  loadSharp?: () => Promise<Sharp | undefined>;
  maxBytes?: number;
  cacheBytes?: number;
};

/** As base64 this is 600 KB: clients drop answers from 1 MB on. */
const MAX_BYTES = 450_000;
const CACHE_BYTES = 32 * 1024 ** 2;
/** A picture of more pixels is no work of a model here, and may be a bomb. */
const MAX_PIXELS = 100e6;
const TIMEOUT_S = 60;
/** Tried where the wish is too large, before it is made smaller. */
const COARSE = 50;
/** Each try aims at what fits, so one or two are enough. */
const TRIES = 6;

const MIME: Record<ImageFormat, string> = { jpg: 'image/jpeg', png: 'image/png', webp: 'image/webp' };

export function mimeOf(format: ImageFormat): string {
  return MIME[format];
}

/** Cuts, scales and encodes pictures: one at a time, because each takes a core and some 100 MB. Keeps what it made last. */
export class Renderer {
  readonly #options: Required<RendererOptions>;
  readonly #permits = new Permits(1);
  /** By the bytes of the original and the wish; the last used are last. */
  readonly #made = new Map<string, Rendered>();
  #madeBytes = 0;
  #sharp: Promise<Sharp | undefined> | undefined;

  constructor({ loadSharp = importSharp, maxBytes = MAX_BYTES, cacheBytes = CACHE_BYTES }: RendererOptions = {}) {
    this.#options = { loadSharp, maxBytes, cacheBytes };
  }

  /** Undefined where this installation cannot. Rejects with INPUT_INVALID what is no picture, and a crop outside of it. */
  async render(
    picture: { content: Buffer; sha256: string },
    { transform, signal }: { transform: Transform; signal: AbortSignal },
  ): Promise<Rendered | undefined> {
    this.#sharp ??= this.#options.loadSharp();
    const sharp = await this.#sharp;
    if (sharp === undefined) return undefined;
    const key = `${picture.sha256} ${JSON.stringify(transform)}`;
    const known = this.#made.get(key);
    if (known !== undefined) return this.#remember(key, known);
    const made = this.#permits.use(async () => {
      signal.throwIfAborted(); // whoever asked left while others were served
      return await fitting(sharp, { content: picture.content, transform, maxBytes: this.#options.maxBytes, signal });
    });
    return this.#remember(key, await untilAborted(made, signal));
  }

  #remember(key: string, rendered: Rendered): Rendered {
    this.#drop(key);
    this.#made.set(key, rendered);
    this.#madeBytes += rendered.bytes.length;
    for (const oldest of this.#made.keys()) {
      if (this.#madeBytes <= this.#options.cacheBytes) break;
      this.#drop(oldest);
    }
    return rendered;
  }

  #drop(key: string): void {
    this.#madeBytes -= this.#made.get(key)?.bytes.length ?? 0;
    this.#made.delete(key);
  }
}

async function importSharp(): Promise<Sharp | undefined> {
  try {
    return (await import('sharp')).default;
  } catch {
    return undefined; // not in this package, or not for this platform
  }
}

type Work = { content: Buffer; transform: Transform; maxBytes: number; signal: AbortSignal };

async function fitting(sharp: Sharp, { content, transform, maxBytes, signal }: Work): Promise<Rendered> {
  const { crop } = transform;
  if (crop !== undefined) checkCrop(crop, await sizeOf(sharp, content));
  let attempt = transform;
  for (let tries = 0; tries < TRIES; tries += 1) {
    signal.throwIfAborted();
    const rendered = await encode(sharp, { content, transform: attempt });
    if (rendered.bytes.length <= maxBytes) return { ...rendered, isReduced: attempt !== transform };
    attempt = smaller(attempt, { rendered, maxBytes });
  }
  throw new AppError('RESULT_INVALID', 'The picture does not fit into an answer, however small. Open the file itself.');
}

/** First coarser, which shows less than fewer pixels do; a PNG has no quality to lower. Then as many pixels as may fit. */
function smaller(
  attempt: Transform,
  { rendered, maxBytes }: { rendered: Pick<Rendered, 'bytes' | 'width' | 'height'>; maxBytes: number },
): Transform {
  if (attempt.format !== 'png' && attempt.quality > COARSE) return { ...attempt, quality: COARSE };
  const scale = Math.min(0.8, 0.9 * Math.sqrt(maxBytes / rendered.bytes.length));
  const side = (pixels: number): number => Math.max(1, Math.floor(pixels * scale));
  return { ...attempt, width: side(rendered.width), height: side(rendered.height) };
}

async function sizeOf(sharp: Sharp, content: Buffer): Promise<{ width: number; height: number }> {
  const { autoOrient } = await readable(() => sharp(content, { limitInputPixels: MAX_PIXELS }).metadata());
  return autoOrient;
}

/** Nothing the file says of itself goes along: neither a place nor a prompt gets into an answer this way. */
async function encode(
  sharp: Sharp,
  o: { content: Buffer; transform: Transform },
): Promise<Omit<Rendered, 'isReduced'>> {
  const { format, quality, width, height, crop } = o.transform;
  let picture = sharp(o.content, { limitInputPixels: MAX_PIXELS }).timeout({ seconds: TIMEOUT_S }).autoOrient();
  if (crop !== undefined)
    picture = picture.extract({ left: crop.x, top: crop.y, width: crop.width, height: crop.height });
  picture = picture.resize({ width, height, fit: 'inside', withoutEnlargement: true });
  if (format === 'jpg') picture = picture.flatten({ background: '#fff' }).jpeg({ quality });
  else if (format === 'webp') picture = picture.webp({ quality });
  else picture = picture.png();
  const { data, info } = await readable(() => picture.toBuffer({ resolveWithObject: true }));
  return { bytes: data, mimeType: mimeOf(format), width: info.width, height: info.height, quality };
}

/** sharp says in its own words what is wrong with a file; they name no path. */
async function readable<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new AppError('INPUT_INVALID', `The picture cannot be read (${why}). Check the file in a viewer.`, {
      cause: error,
    });
  }
}
