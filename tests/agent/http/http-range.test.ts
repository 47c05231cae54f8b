import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseRange } from '../../../agent/http/http-range.ts';

const whole = { kind: 'whole' };
const unsatisfiable = { kind: 'unsatisfiable' };
const part = (start: number, end: number) => ({ kind: 'part', start, end });

test.each([
  ['no header', undefined, whole],
  ['from the start', 'bytes=0-', part(0, 99)],
  ['the rest of a broken download', 'bytes=40-', part(40, 99)],
  ['both ends', 'bytes=10-19', part(10, 19)],
  ['one byte', 'bytes=99-99', part(99, 99)],
  ['end beyond the file', 'bytes=90-500', part(90, 99)],
  ['the last bytes', 'bytes=-10', part(90, 99)],
  ['more last bytes than there are', 'bytes=-500', part(0, 99)],
  ['no last bytes', 'bytes=-0', unsatisfiable],
  ['behind the end', 'bytes=100-', unsatisfiable],
  ['backwards is no range', 'bytes=20-10', whole],
  ['several ranges', 'bytes=0-1,5-6', whole],
  ['another unit', 'lines=0-1', whole],
  ['nothing in it', 'bytes=-', whole],
  ['signs', 'bytes=+1-2', whole],
])('%s', (_, header, expected) => {
  expect(parseRange(header, 100)).toEqual(expected);
});

test('whatever the header says, a part lies inside the file', () => {
  const header = fc.oneof(
    fc.string(),
    fc.tuple(fc.nat(), fc.nat()).map(([from, to]) => `bytes=${from}-${to}`),
  );
  fc.assert(
    fc.property(header, fc.nat({ max: 1000 }), (text, bytes) => {
      const range = parseRange(text, bytes);
      return range.kind !== 'part' || (range.start >= 0 && range.start <= range.end && range.end < bytes);
    }),
  );
});
