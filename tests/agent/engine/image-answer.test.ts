import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setImmediate as breath } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import type { ImageSink } from '../../../agent/engine/image-answer.ts';
import { callForImage } from '../../../agent/engine/image-answer.ts';
import { never } from '../model/model-host.ts';

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

async function engine(answer: (response: ServerResponse) => unknown): Promise<string> {
  const server = createServer((request, response) => {
    request.resume();
    void answer(response); // never rejects
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  closing.push(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`; // it listens on a port
}

function json(response: ServerResponse, body: string, type = 'application/json'): void {
  response.writeHead(200, { 'content-type': type }).end(body);
}

class Sink {
  readonly events: string[] = [];
  chunks: Buffer[] = [];
  begin(): void {
    this.events.push('begin');
    this.chunks = [];
  }
  write(bytes: Buffer): undefined {
    this.chunks.push(Buffer.from(bytes)); // its memory is used again
  }
  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

async function call(url: string, sink: Parameters<typeof callForImage>[1]['sink']): Promise<void> {
  await callForImage(url, { signal: never, deadlineMs: 10_000, field: 'b64_json', sink });
}

const IMAGE = Buffer.alloc(500_000, 'some picture ');

describe('a picture that an engine answers', () => {
  test('as base64 in JSON, and as bytes, comes out as bytes', async () => {
    const text = JSON.stringify({ data: [{ b64_json: IMAGE.toString('base64') }], size: '1x1' });
    for (const url of [
      await engine((response) => json(response, text)),
      await engine((response) => response.writeHead(200, { 'content-type': 'image/png' }).end(IMAGE)),
    ]) {
      const sink = new Sink();
      await call(url, sink);
      expect(sink.bytes.equals(IMAGE)).toBe(true);
      expect(sink.events).toEqual(['begin']);
      expect(sink.chunks.length).toBeGreaterThan(1);
    }
  });

  test('is passed on before its end is here', async () => {
    let go = (): void => undefined;
    const first = new Promise<void>((resolve) => (go = resolve));
    const sink = new Sink();
    const url = await engine(async (response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.write('{"data":[{"b64_json":"AAAAAAAA');
      await first;
      response.end('////"}]}');
    });
    const calling = call(url, { ...sink, begin: () => sink.begin(), write: (bytes) => (go(), sink.write(bytes)) });
    await first; // it hangs here unless the start is passed on at once
    await calling;
    expect(sink.bytes).toEqual(Buffer.from('AAAAAAAA////', 'base64'));
  });

  test('waits for a slow sink, so that only what was asked for is in memory', async () => {
    let sent = 0;
    const url = await engine(async (response) => {
      response.writeHead(200, { 'content-type': 'image/png' });
      for (let n = 0; n < 400; n += 1) {
        sent += 65_536;
        if (!response.write(Buffer.alloc(65_536))) await once(response, 'drain').catch(() => undefined);
      }
      response.end();
    });
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    let bytes = 0;
    const calling = call(url, {
      begin: () => undefined,
      write: (chunk) => {
        bytes += chunk.length;
        return held;
      },
    });
    // The kernel's buffers take some megabytes, and then it stands still.
    for (let before = -1; before !== sent || sent === 0;) {
      before = sent;
      for (let n = 0; n < 200; n += 1) await breath();
    }
    expect(sent).toBeLessThan(20e6);
    release();
    await calling;
    expect(bytes).toBe(400 * 65_536);
  });

  test('is over at its last byte, and stays as it is while a slow sink has it', async () => {
    const image = Buffer.from(Array.from({ length: 60_000 }, (_, at) => (at * 7919) >>> 8));
    const text = JSON.stringify({ b64_json: image.toString('base64') });
    const url = await engine((response) => json(response, text));
    const writing: Promise<Buffer>[] = [];
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    const slow: ImageSink = {
      begin: () => undefined,
      write: (bytes) => {
        // Copied only after the end: until then its memory must not be another piece's.
        const copied = held.then(() => Buffer.from(bytes));
        writing.push(copied);
        return copied.then(() => undefined);
      },
    };
    await call(url, slow); // hangs here where the end waits for the sink
    const other = await engine((response) => json(response, JSON.stringify({ b64_json: IMAGE.toString('base64') })));
    await call(other, new Sink());
    release();
    expect(Buffer.concat(await Promise.all(writing)).equals(image)).toBe(true);
  });

  test('fails with what a sink throws, or with the reason of the signal', async () => {
    const url = await engine((response) => void response.writeHead(200).write('{"b64_json":"AAAAAAAA'));
    const failing = { begin: () => undefined, write: () => Promise.reject(new Error('no more')) };
    await expect(call(url, failing)).rejects.toThrow('no more');
    const throwing = {
      begin: () => undefined,
      write: () => {
        throw new Error('at once');
      },
    };
    await expect(call(url, throwing)).rejects.toThrow('at once');
    const stop = new AbortController();
    const silent = await engine(() => stop.abort(new Error('stopped')));
    const options = { signal: stop.signal, deadlineMs: 10_000, field: 'b64_json', sink: new Sink() };
    await expect(callForImage(silent, options)).rejects.toThrow('stopped');
    const late = { ...options, signal: never, deadlineMs: 50 };
    await expect(callForImage(silent, late)).rejects.toMatchObject({ name: 'TimeoutError' });
  });

  test.each<[string, string, string]>([
    ['without the field', '{"data":[]}', 'no complete "b64_json"'],
    ['cut inside the field', '{"b64_json":"AAAA', 'no complete "b64_json"'],
  ])('%s is no result', async (_, body, says) => {
    const url = await engine((response) => json(response, body));
    const failing = call(url, new Sink());
    await expect(failing).rejects.toMatchObject({ code: 'RESULT_INVALID' });
    await expect(failing).rejects.toThrow(says);
  });

  test('that breaks off is an error of the connection', async () => {
    const url = await engine((response) => {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': 1_000_000 });
      response.write('{"b64_json":"AAAA', () => response.destroy());
    });
    await expect(call(url, new Sink())).rejects.toThrow(/aborted|hang up|reset/i);
  });

  test('and an error answer never reaches the sink', async () => {
    const url = await engine((response) => response.writeHead(500).end('{"detail":"CUDA out of memory"}'));
    const sink = new Sink();
    await expect(call(url, sink)).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    expect(sink.events).toEqual([]);
  });
});
