import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatOfName, imageName, isDeviceName, numbered, safeName } from '../../../bridge/output/file-names.ts';

test('an image that nobody named is called by local time and the hash of its prompt', () => {
  const at = new Date(2026, 1, 8, 4, 3, 2);
  expect(imageName({ promptSha256: 'a1b2c3d4', at, format: 'png' })).toBe('img_20260208_040302_a1b2c3.png');
  expect(imageName({ promptSha256: 'ffffff00', at, format: 'webp' })).toBe('img_20260208_040302_ffffff.webp');
});

test.each([
  ['a.png', 1, 'a.png'],
  ['a.png', 2, 'a-2.png'],
  ['a.b.png', 3, 'a.b-3.png'],
  ['noextension', 2, 'noextension-2'],
])('%s as number %i is %s', (name, n, expected) => {
  expect(numbered(name, n)).toBe(expected);
});

test.each([
  ['fox.png', 'png'],
  ['fox.JPEG', 'jpg'],
  ['fox.jpg', 'jpg'],
  ['fox.webp', 'webp'],
  ['fox.gif', undefined],
  ['fox', undefined],
  ['.png', undefined],
  ['', undefined],
])('the format of %s is %s', (name, format) => {
  expect(formatOfName(name)).toBe(format);
});

test.each([
  ['fox', 'png', 'fox.png'],
  ['fox.png', 'png', 'fox.png'],
  ['fox.jpeg', 'jpg', 'fox.jpg'],
  ['fox.gif', 'png', 'fox.png'],
  ['v1.5', 'png', 'v1.5.png'],
  ['../../etc/passwd', 'png', 'passwd.png'],
  ['C:\\Users\\me\\fox.png', 'png', 'fox.png'],
  ['.hidden', 'png', 'hidden.png'],
  ['..', 'png', 'image.png'],
  ['', 'png', 'image.png'],
  ['a:b*c?.png', 'png', 'a_b_c_.png'],
  ['a\u0000b\u001b[31m.png', 'png', 'a_b_[31m.png'],
  ['gnp\u202e.exe', 'png', 'gnp_.exe.png'],
  ['CON', 'png', '_CON.png'],
  ['nul.txt', 'png', '_nul.txt.png'],
  ['trailing. . ', 'png', 'trailing.png'],
  ['e\u0301', 'png', '\u00e9.png'],
] as const)('%j is saved as %s: %s', (suggested, format, expected) => {
  expect(safeName(suggested, format)).toBe(expected);
});

test('every safe name is one that every file system takes', () => {
  fc.assert(
    fc.property(
      fc.oneof(fc.string({ unit: 'binary', maxLength: 400 }), fc.string({ unit: 'grapheme', maxLength: 400 })),
      (suggested) => {
        const name = safeName(suggested, 'png');
        expect(Buffer.byteLength(numbered(name, 99_999))).toBeLessThanOrEqual(255);
        expect(name).toMatch(/\.png$/);
        expect(name).not.toMatch(/[\p{Cc}/\\:*?"<>|]|^\.|[. ]\.png$/u);
        expect(name).not.toMatch(/\p{Cs}/u);
        expect(isDeviceName(name)).toBe(false);
        expect(safeName(name, 'png')).toBe(name);
      },
    ),
  );
});

test.each([
  ['CON', true],
  ['con.txt', true],
  ['LPT1', true],
  ['COM\u00b9', true],
  ['console', false],
  ['com10', false],
])('%s is a device on Windows: %s', (name, expected) => {
  expect(isDeviceName(name)).toBe(expected);
});
