import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setImmediate as breath } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
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
    this.chunks.push(bytes);
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
    let isFirst = true;
    let bytes = 0;
    const calling = call(url, {
      begin: () => undefined,
      write: (chunk) => {
        bytes += chunk.length;
        if (!isFirst) return undefined;
        isFirst = false;
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
