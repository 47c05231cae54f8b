import { AppError } from '../../shared/errors.ts';

export type SheetOptions = {
  /** Longest side of the whole sheet in pixels. */
  side: number;
  /** The JPEG's quality steps down until it fits; PNG ignores it. */
  maxBytes?: number;
  format: 'jpeg' | 'png';
};

const GAP = 8;
const BACKGROUND = '#20242b';
const QUALITIES = [80, 70, 60, 50, 40];

/** All pictures (paths or bytes) in one grid. sharp is loaded only here, because it is native and costs start-up time. */
export async function contactSheet(pictures: readonly (string | Buffer)[], options: SheetOptions): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  const columns = Math.ceil(Math.sqrt(pictures.length));
  const rows = Math.ceil(pictures.length / columns);
  const cell = Math.floor((options.side - GAP * (columns + 1)) / columns);
  const tiles = await Promise.all(
    pictures.map(async (picture, index) => {
      const tile = await sharp(picture, { limitInputPixels: 50e6 })
        .resize(cell, cell, { fit: 'inside' })
        .toBuffer({ resolveWithObject: true });
      return {
        input: tile.data,
        left: GAP + (index % columns) * (cell + GAP) + Math.floor((cell - tile.info.width) / 2),
        top: GAP + Math.floor(index / columns) * (cell + GAP) + Math.floor((cell - tile.info.height) / 2),
      };
    }),
  );
  const width = GAP + columns * (cell + GAP);
  const height = GAP + rows * (cell + GAP);
  const sheet = await sharp({ create: { width, height, channels: 3, background: BACKGROUND } })
    .composite(tiles)
    .png()
    .toBuffer();
  if (options.format === 'png') return sheet;
  return smallJpeg(sheet, { maxBytes: options.maxBytes ?? Infinity });
}

/** A picture as a JPEG of at most `maxBytes`, by lower and lower quality. */
export async function smallJpeg(picture: Buffer, { maxBytes }: { maxBytes: number }): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  for (const quality of QUALITIES) {
    const jpeg = await sharp(picture, { limitInputPixels: 50e6 })
      .resize(1024, 1024, { fit: 'inside', withoutEnlargement: true })
      .jpeg({ quality })
      .toBuffer();
    if (jpeg.length <= maxBytes) return jpeg;
  }
  throw new AppError('RESULT_INVALID', `A preview does not fit into ${maxBytes} bytes. Open the file itself.`);
}
