import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkCrop, transformFromQuery, transformOf, VIEW_PARAMETERS } from '../../../bridge/images/transform.ts';
import { AppError } from '../../../shared/errors.ts';

test.each([
  ['', { format: 'jpg', quality: 80, width: 1568, height: 1568, crop: undefined }],
  ['format=webp', { format: 'webp' }],
  ['format=JPEG', { format: 'jpg' }],
  ['width=300', { width: 300, height: 2000 }],
  ['height=1', { width: 2000, height: 1 }],
  ['quality=100', { quality: 100 }],
  ['crop_w=5&crop_h=6', { crop: { x: 0, y: 0, width: 5, height: 6 } }],
  ['crop_x=1&crop_y=2&crop_w=5&crop_h=6', { crop: { x: 1, y: 2, width: 5, height: 6 } }],
])('%s', (query, expected) => {
  expect(transformFromQuery(query)).toMatchObject(expected);
});

test.each([
  ['widht=3', /Unknown parameter "widht"\. Did you mean width\?/],
  ['rotate=90', /Unknown parameter "rotate"\..*Valid: format, width/],
  ['__proto__=1', /Unknown parameter/],
  ['width=0', /width must be a whole number from 1 to 2000\. Nearest valid width is 1\./],
  ['width=2001', /Nearest valid width is 2000\./],
  ['width=-3', /width must be a whole number from 1 to 2000\.$/],
  ['width=1e3', /width must be/],
  ['width=', /width must be/],
  ['width=0x10', /width must be/],
  ['width=99999999999999999999', /width must be/],
  ['quality=0', /Nearest valid quality is 1/],
  ['quality=101', /Nearest valid quality is 100/],
  ['format=gif', /format must be one of jpg, png, webp/],
  ['format=pn', /Did you mean png\?/],
  ['format=constructor', /format must be one of/],
  ['width=1&width=2', /width is given twice/],
  ['crop_w=5', /A crop needs crop_w and crop_h/],
  ['crop_x=5&crop_y=1', /A crop needs crop_w and crop_h/],
  ['crop_w=0&crop_h=5', /Nearest valid crop_w is 1/],
])('%s is refused', (query, sentence) => {
  expect(() => transformFromQuery(query)).toThrow(sentence);
});

test('whatever stands there, it is a transform within its limits or one sentence', () => {
  const name = fc.oneof(fc.constantFrom(...VIEW_PARAMETERS), fc.string());
  const value = fc.oneof(fc.integer().map(String), fc.string(), fc.constantFrom('png', 'jpg'));
  fc.assert(
    fc.property(fc.array(fc.tuple(name, value), { maxLength: 6 }), (pairs) => {
      try {
        const { width, height, quality } = transformFromQuery(new URLSearchParams(pairs).toString());
        expect(Math.max(width, height)).toBeLessThanOrEqual(2000);
        expect(Math.min(width, height, quality)).toBeGreaterThanOrEqual(1);
      } catch (error) {
        expect(error).toBeInstanceOf(AppError);
        expect((error as AppError).message.length).toBeLessThan(400);
      }
    }),
  );
});

describe('a crop', () => {
  test.each([
    [{ x: 0, y: 0, width: 10, height: 8 }, true],
    [{ x: 9, y: 7, width: 1, height: 1 }, true],
    [{ x: 1, y: 0, width: 10, height: 8 }, false],
    [{ x: 0, y: 8, width: 1, height: 1 }, false],
  ])('%j of 10x8: %s', (crop, isInside) => {
    const check = (): void => checkCrop(crop, { width: 10, height: 8 });
    if (isInside) expect(check).not.toThrow();
    else expect(check).toThrow(/reaches outside the image, which has 10x8 pixels/);
  });
});

test('a tool says the same as an address', () => {
  expect(transformOf({ width: 5, crop: undefined })).toEqual(transformFromQuery('width=5'));
});
