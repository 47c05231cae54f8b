import { createHash } from 'node:crypto';
import { appendFile, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { PictureProcess } from '../../agent/job/picture-process.ts';
import { ResultStore } from '../../agent/job/result-store.ts';
import type { Log } from '../../shared/log.ts';
import { saveImage, sweepParts } from '../../bridge/output/image-file.ts';

/**
 * A program that saves and saves, as the bridge does and as the agent does, until it is killed. With `sweep` it only does
 * what both do at their start. `image` is the same in every process, so that every whole file has the same hash.
 */
const [directory = '', mode = ''] = process.argv.slice(2);
const CHUNK_BYTES = 997;
const image = Buffer.concat([
  Buffer.from('\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\x01\0\b\x02\0\0\0', 'latin1'),
  Buffer.alloc(100_000, 7),
]);
const sha256 = createHash('sha256').update(image).digest('hex');

const output = join(directory, 'out');
await mkdir(output, { recursive: true });
await sweepParts(output);
const log = { info: () => undefined } as unknown as Log; // pino would take most of the time that a start takes
const pictures = new PictureProcess(); // which only starts when there is a picture to look at
const store = await ResultStore.open({
  dir: join(directory, 'results'),
  quotaBytes: 1e12,
  keptMs: 1e12,
  pictures,
  log,
});
if (mode !== 'sweep') {
  process.stdout.write(`${sha256}\n`);
  await Promise.all([saveAsBridge(), saveAsAgent()]);
}

async function saveAsBridge(): Promise<never> {
  for (;;) {
    await saveImage({
      body: chunks(),
      expected: { sha256, bytes: image.length },
      directory: output,
      name: 'image.png',
      onSaving: (name) => appendFile(join(directory, 'manifest'), `${name}\n`, { flush: true }),
      signal: new AbortController().signal,
    });
  }
}

async function saveAsAgent(): Promise<never> {
  for (;;) await store.put('token', crypto.randomUUID(), 1, image, image);
}

/** As a network brings them. */
async function* chunks(): AsyncGenerator<Buffer> {
  for (let at = 0; at < image.length; at += CHUNK_BYTES) {
    yield image.subarray(at, at + CHUNK_BYTES);
    await nextTurn();
  }
}
