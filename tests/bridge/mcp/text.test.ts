import fc from 'fast-check';
import { expect, test } from 'vitest';
import { syncWaitMs } from '../../../bridge/mcp/patience.ts';
import { cleanDeep, cleanText } from '../../../bridge/mcp/text.ts';
import { gb, knownGb, seconds } from '../../../bridge/mcp/units.ts';

test.each([
  ['plain\ttext\nstays', 'plain\ttext\nstays'],
  ['\u001b[1;31mred\u001b[0m', 'red'],
  ['\u001b]8;;http://x\u0007link\u001b]8;;\u0007', 'link'],
  ['a\u0000b\u0008c\u007fd\u0085e', 'abcde'],
  ['over\rwritten', 'overwritten'],
  ['lines\r\nend', 'lines\nend'],
])('%j is cleaned to %j', (text, expected) => {
  expect(cleanText(text, 100)).toBe(expected);
});

test('no text comes out longer, with a control character, or cut inside a character', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), fc.integer({ min: 2, max: 40 }), (text, max) => {
      const clean = cleanText(text, max);
      expect(clean.length).toBeLessThanOrEqual(max);
      expect(clean).not.toMatch(/[^\P{Cc}\n\t]/u);
      if (!/\p{Cs}/u.test(text)) expect(clean).not.toMatch(/\p{Cs}/u);
    }),
    { numRuns: 50 },
  );
});

test('every text of an answer is cleaned, and what is undefined is left out', () => {
  expect(cleanDeep({ a: ['\u001b[2Jx', { 'b\u0007': '\u0007y', c: undefined, d: null, e: 1 }] }, 10)).toEqual({
    a: ['x', { b: 'y', d: null, e: 1 }],
  });
});

test('GB are 1024 MiB and seconds have two places', () => {
  expect([gb(24_564), gb(0), knownGb(null), knownGb(512), seconds(1_234)]).toEqual([23.99, 0, undefined, 0.5, 1.23]);
});

test.each([
  ['claude-code', Infinity],
  ['Visual Studio Code', Infinity],
  ['codex-mcp-client', 270_000],
  ['gemini-cli-mcp-client', 540_000],
  ['claude-ai', 45_000],
  ['unheard-of', 45_000],
])('%s is known to wait %d ms', (client, expected) => {
  expect(syncWaitMs(client, undefined)).toBe(expected);
  expect(syncWaitMs(client, 5_000)).toBe(5_000);
});
