import { describe, expect, test } from 'vitest';
import { HttpAnswer } from '../../../agent/engine/http-answer.ts';

type Heard = { answer: HttpAnswer; status: number | undefined; type: string | undefined; body: string };

/** In pieces of so many bytes. */
function heard(text: string, { pieceBytes, isEnded = true }: { pieceBytes: number; isEnded?: boolean }): Heard {
  const all: Heard = {
    status: undefined,
    type: undefined,
    body: '',
    answer: new HttpAnswer({
      onHead: ({ status, headers }) => Object.assign(all, { status, type: headers.get('content-type') }),
      onBody: (bytes) => (all.body += bytes.toString('latin1')),
    }),
  };
  const bytes = Buffer.from(text, 'latin1');
  for (let at = 0; at < bytes.length; at += pieceBytes) all.answer.push(bytes.subarray(at, at + pieceBytes));
  if (isEnded) all.answer.end();
  return all;
}

const HEAD = 'HTTP/1.1 200 OK\r\nContent-Type:  image/png \r\n';

describe('an HTTP answer in pieces of any size', () => {
  test.each<[string, string]>([
    ['with a length', `${HEAD}content-length: 11\r\n\r\nhello world`],
    ['in chunks', `${HEAD}transfer-encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n006\r\n world\r\n0\r\nx: y\r\n\r\n`],
    ['after an interim answer', `HTTP/1.1 100 Continue\r\n\r\n${HEAD}content-length: 11\r\n\r\nhello world`],
    ['with more behind its end', `${HEAD}content-length: 11\r\n\r\nhello worldHTTP/1.1 500 Oh\r\n\r\n`],
  ])('%s', (_, text) => {
    for (let pieceBytes = 1; pieceBytes <= text.length; pieceBytes += 1) {
      const { answer, ...rest } = heard(text, { pieceBytes, isEnded: false });
      expect(rest).toEqual({ status: 200, type: 'image/png', body: 'hello world' });
      expect(answer.isComplete).toBe(true);
    }
  });

  test('without a length it ends with the connection', () => {
    const text = `${HEAD}\r\nhello\r\n`;
    expect(heard(text, { pieceBytes: 3, isEnded: false }).answer.isComplete).toBe(false);
    const ended = heard(text, { pieceBytes: 3 });
    expect(ended.answer.isComplete).toBe(true);
    expect(ended.body).toBe('hello\r\n');
  });

  test('204 and an empty body are complete with the head', () => {
    for (const text of ['HTTP/1.0 204 No Content\r\n\r\n', `${HEAD}content-length: 0\r\n\r\n`]) {
      expect(heard(text, { pieceBytes: 100, isEnded: false }).answer.isComplete).toBe(true);
    }
  });

  test.each<[string, string]>([
    ['inside the head', HEAD],
    ['inside the body', `${HEAD}content-length: 12\r\n\r\nhello world`],
    ['inside a chunk', `${HEAD}transfer-encoding: chunked\r\n\r\n5\r\nhel`],
    ['before the last chunk', `${HEAD}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n`],
  ])('is not complete when the connection ends %s', (_, text) => {
    expect(heard(text, { pieceBytes: 7 }).answer.isComplete).toBe(false);
  });

  test.each<[string, string]>([
    ['another protocol', 'SSH-2.0-OpenSSH\r\n\r\n'],
    ['a header without a colon', `${HEAD}nonsense\r\n\r\n`],
    ['a length that is none', `${HEAD}content-length: -1\r\n\r\n`],
    ['a coding that nobody asked for', `${HEAD}transfer-encoding: gzip, chunked\r\n\r\n`],
    ['a chunk without a length', `${HEAD}transfer-encoding: chunked\r\n\r\nhello\r\n`],
    ['a chunk that is longer than it says', `${HEAD}transfer-encoding: chunked\r\n\r\n2\r\nhello\r\n`],
    ['a head without an end', `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(70_000)}`],
    ['a line without an end', `${HEAD}transfer-encoding: chunked\r\n\r\n1${' '.repeat(5_000)}`],
  ])('%s is no answer', (_, text) => {
    expect(() => heard(text, { pieceBytes: 50 })).toThrow('the answer is no HTTP');
  });
});
