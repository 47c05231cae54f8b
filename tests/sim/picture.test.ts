import sharp from 'sharp';
import { describe, expect, test } from 'vitest';
import { wrapped } from '../../scripts/sim/lib/canvas.ts';
import { drawEdit, drawPicture, pictureSize } from '../../scripts/sim/lib/picture.ts';

const facts = { prompt: 'a lighthouse', seed: 7, steps: 9, model: 'org/model', host: 'atelier', gpu: 'Simulated H100' };
const png = { width: 320, height: 200, format: 'png' as const };

test('the same request gives the same bytes; each fact that it shows changes them', async () => {
  const picture = await drawPicture(facts, png);
  expect(await drawPicture(facts, png)).toEqual(picture);
  for (const change of [
    { prompt: 'a castle' },
    { seed: 8 },
    { steps: 8 },
    { model: 'x' },
    { host: 'x' },
    { gpu: 'x' },
  ]) {
    expect(await drawPicture({ ...facts, ...change }, png)).not.toEqual(picture);
  }
});

test.each([
  [16, 16],
  [64, 1024],
  [1024, 64],
  [1664, 928],
])('%i x %i has that size and letters only where they fit', async (width, height) => {
  const long = { ...facts, prompt: 'word '.repeat(400) };
  const picture = await drawPicture(long, { width, height, format: 'png' });
  expect(await sharp(picture).metadata()).toMatchObject({ width, height, format: 'png' });
});

test('a 1024 x 1024 picture costs less than 100 ms', async () => {
  await drawPicture(facts, { ...png, width: 1024, height: 1024 });
  const costsMs: number[] = [];
  for (let round = 0; round < 5; round += 1) {
    const before = process.cpuUsage();
    await drawPicture(facts, { ...png, width: 1024, height: 1024 });
    const { user, system } = process.cpuUsage(before);
    costsMs.push((user + system) / 1_000);
  }
  expect(Math.min(...costsMs)).toBeLessThan(100);
});

test('an edit keeps the picture above its banner', async () => {
  const input = await drawPicture(facts, { width: 400, height: 300, format: 'png' });
  const edited = await drawEdit(input, { ...facts, prompt: 'snow' }, { format: 'png' });
  const top = { left: 0, top: 60, width: 400, height: 60 };
  expect(await sharp(edited).extract(top).raw().toBuffer()).toEqual(await sharp(input).extract(top).raw().toBuffer());
  expect(edited).not.toEqual(input);
});

test('the size of a rotated photograph is that of the upright picture', async () => {
  const photo = await sharp({ create: { width: 60, height: 30, channels: 3, background: 'red' } })
    .jpeg()
    .withMetadata({ orientation: 6 })
    .toBuffer();
  expect(await pictureSize(photo)).toEqual({ width: 30, height: 60 });
});

describe('wrapped', () => {
  test.each([
    ['short', 10, ['short']],
    ['two words', 5, ['two', 'words']],
    ['a  b\nc', 10, ['a b c']],
    ['incomprehensible', 6, ['incomp', 'rehens', 'ible']],
    ['', 6, []],
  ])('%j in %i columns', (text, columns, lines) => {
    expect(wrapped(text, columns)).toEqual(lines);
  });
});
