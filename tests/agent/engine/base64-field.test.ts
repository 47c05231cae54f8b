import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Base64Field } from '../../../agent/engine/base64-field.ts';

/** What comes out of the text when it is cut at these lengths; undefined where the value has no end. */
function decoded(text: string, cuts: readonly number[] = []): Buffer | undefined {
  const bytes = Buffer.from(text);
  const field = new Base64Field('b64_json');
  const out: Buffer[] = [];
  let at = 0;
  for (const length of [...cuts, bytes.length]) {
    out.push(field.push(bytes.subarray(at, at + length)) ?? Buffer.alloc(0));
    at += length;
  }
  return field.isComplete ? Buffer.concat(out) : undefined;
}

const cutting = fc.array(fc.integer({ min: 1, max: 40 }));

describe('the picture in a JSON answer', () => {
  test('is decoded whole, however the answer was cut on its way', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), cutting, (bytes, cuts) => {
        const image = Buffer.from(bytes);
        const text = `{"created":1,"data":[{"b64_json" : "${image.toString('base64')}","url":null}],"x":"y"}`;
        expect(decoded(text, cuts)).toEqual(image);
      }),
    );
  });

  test('is the same as JSON.parse finds, whatever else is in the answer', () => {
    fc.assert(
      fc.property(
        fc.dictionary(fc.string(), fc.jsonValue()),
        fc.uint8Array({ maxLength: 60 }),
        cutting,
        (odd, b, cuts) => {
          fc.pre(!JSON.stringify(odd).includes('"b64_json":'));
          const image = Buffer.from(b);
          const text = JSON.stringify({ before: odd, data: [{ b64_json: image.toString('base64') }], after: odd });
          expect(decoded(text, cuts)).toEqual(image);
        },
      ),
    );
  });

  test('is decoded as it comes: nothing of a long value is kept', () => {
    const field = new Base64Field('b64_json');
    field.push(Buffer.from('{"b64_json":"'));
    for (let n = 0; n < 50; n += 1) expect(field.push(Buffer.from('AAAAAA'))?.length).toBeGreaterThanOrEqual(3);
  });

  const ROWS: [what: string, text: string, image: Buffer | undefined][] = [
    ['a value that does not end', '{"data":[{"b64_json":"iVBORw0K', undefined],
    ['no such field', '{"data":[]}', undefined],
    ['null', '{"b64_json":null}', undefined],
    ['a number', '{"b64_json":12,"x":"AAAA"}', undefined],
    ['nothing at all', '', undefined],
    ['null first, then a value', '{"data":[{"b64_json":null},{"b64_json":"AAAA"}]}', Buffer.alloc(3)],
    ['a value of the same name before it', '{"format":"b64_json","b64_json":"AAAA"}', Buffer.alloc(3)],
    ['a value of the same name, and then another field', '{"format":"b64_json","x":"AAAA"}', undefined],
    ['the field twice: the first counts', '{"b64_json":"AAAA","b64_json":"////"}', Buffer.alloc(3)],
    ['the field deep inside', '{"a":{"b":[{"c":{"b64_json":"AAAA"}}]}}', Buffer.alloc(3)],
    ['the field inside a string', JSON.stringify({ prompt: '{"b64_json":"////"}', b64_json: 'AAAA' }), Buffer.alloc(3)],
    ['a string that ends in its name', '{"p":"\\"b64_json","b64_json":"AAAA"}', Buffer.alloc(3)],
    ['a key that ends in its name', '{"\\"b64_json":"////","b64_json":"AAAA"}', Buffer.alloc(3)],
    ['a longer key', '{"b64_json_url":"////","b64_json":"AAAA"}', Buffer.alloc(3)],
    ['a string that ends in a backslash', '{"p":"\\\\","b64_json":"AAAA"}', Buffer.alloc(3)],
    ['slashes that are escaped', '{"b64_json":"\\/\\/\\/\\/"}', Buffer.alloc(3, 0xff)],
    ['padding', '{"b64_json":"AAA="}', Buffer.alloc(2)],
    ['an empty value', '{"b64_json":""}', Buffer.alloc(0)],
  ];
  test.each(ROWS)('%s', (_, text, image) => {
    for (let size = 1; size <= text.length + 1; size += 1) {
      const cuts = Array.from({ length: Math.ceil(text.length / size) }, () => size);
      expect(decoded(text, cuts), `in pieces of ${size}`).toEqual(image);
    }
  });

  test('a hostile answer of one long string costs no more than its length', () => {
    const field = new Base64Field('b64_json');
    const piece = Buffer.alloc(1_000_000, '\\');
    field.push(Buffer.from('{"'));
    for (let n = 0; n < 5; n += 1) expect(field.push(piece)).toBeUndefined();
    field.push(Buffer.from('","b64_json":"AAAA"}'));
    expect(field.isComplete).toBe(true);
  });
});
