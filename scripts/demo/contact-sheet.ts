import sharp from 'sharp';

const CELL = 256;
const GAP = 12;

/** One PNG with every picture of the demo, in the order they were made. */
export async function writeContactSheet(files: readonly string[], target: string): Promise<void> {
  const columns = Math.ceil(Math.sqrt(files.length * 1.5));
  const rows = Math.ceil(files.length / columns);
  const thumbnails = await Promise.all(
    files.map((file) => sharp(file).resize(CELL, CELL, { fit: 'contain', background: '#202024' }).png().toBuffer()),
  );
  const place = (index: number) => ({
    left: GAP + (index % columns) * (CELL + GAP),
    top: GAP + Math.floor(index / columns) * (CELL + GAP),
  });
  await sharp({
    create: {
      width: GAP + columns * (CELL + GAP),
      height: GAP + rows * (CELL + GAP),
      channels: 3,
      background: '#202024',
    },
  })
    .composite(thumbnails.map((input, index) => ({ input, ...place(index) })))
    .png()
    .toFile(target);
}
