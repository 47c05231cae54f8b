import { randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DurableFile } from '../../shared/durable-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { PngSize, TextChunk } from '../../shared/png-text.ts';
import type { PictureSink } from '../model/lease.ts';
import { toDiskError } from './disk-error.ts';
import { FinalBytes } from './final-bytes.ts';
import type { PictureFacts, PictureProcess } from './picture-process.ts';

/** What an engine may answer at most; the largest size a request may name is 67 megapixels. */
const MAX_PIXELS = 80e6;
/** Read and written at a time where a whole file is gone through again. */
const PIECE_BYTES = 256 * 1024;

/** What comes, and where it goes. */
type Incoming = { file: DurableFile; bytes: FinalBytes };

export type IncomingOptions = {
  /** There the bytes are until they are a result. */
  directory: string;
  pictures: PictureProcess;
  format: ImageFormat;
  /** The text for a PNG of that size, that had run for so long when it began to come. */
  textOf: (size: PngSize & { runMs: number }) => readonly TextChunk[];
};

/** A picture that was decoded to its last pixel. Its files are in the incoming picture's directory until they are kept. */
export type ReceivedPicture = PngSize & {
  file: DurableFile;
  previewPath: string;
  sha256: string;
  bytes: number;
  format: ImageFormat;
};

/**
 * One picture from the engine's first byte to a file that can be kept. A PNG that is to stay one is written once, while it
 * comes: its text goes behind the head and the hash is taken on the way. Anything else is stored as it came and encoded
 * anew. Neither holds more than a few chunks. Disposing removes what was not kept.
 */
export class IncomingPicture implements AsyncDisposable, PictureSink {
  readonly #options: IncomingOptions;
  readonly #expected: Disposable;
  readonly #previewPath: string;
  readonly #encodedPath: string;
  /** As it came, or final. */
  #file: Incoming | undefined;
  #cleared: Promise<unknown> = Promise.resolve();
  #runMs = 0;
  #bytes = 0;
  #isDisposed = false;

  constructor(options: IncomingOptions) {
    this.#options = options;
    this.#expected = options.pictures.expect();
    const name = join(options.directory, randomUUID());
    this.#previewPath = `${name}.preview.part`;
    this.#encodedPath = `${name}.encoded.part`;
  }

  /** What came until now. */
  get bytes(): number {
    return this.#bytes;
  }

  begin(runMs: number): void {
    if (this.#isDisposed) return; // abandoned: the engine still answers, and nobody wants it
    this.#clear();
    this.#runMs = runMs;
    this.#bytes = 0;
    this.#file = this.#open({ hasText: this.#options.format === 'png' });
  }

  write(bytes: Buffer): Promise<void> | undefined {
    if (this.#isDisposed) return undefined;
    this.#bytes += bytes.length;
    return this.#file?.bytes.write(bytes);
  }

  /** After the last byte. RESULT_INVALID where it is no whole picture, DISK_FULL where it could not be written. */
  async received(): Promise<ReceivedPicture> {
    const came = this.#file;
    if (came === undefined) throw this.#invalid(new Error('nothing came'));
    came.bytes.end();
    // The disk and the decoder work at the same time: the decoder finds in the file what was written.
    await onDisk(came.file.written(), came.file.path);
    const [facts] = await Promise.all([this.#check(came.file.path), onDisk(came.file.settle(), came.file.path)]);
    const file = came.bytes.isFinal ? came : await this.#encode(came.file.path);
    const { width, height } = facts;
    const { format } = this.#options;
    return { file: file.file, previewPath: this.#previewPath, ...file.bytes.result(), width, height, format };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDisposed = true;
    this.#expected[Symbol.dispose]();
    this.#clear();
    await this.#cleared;
    await rm(this.#previewPath, { force: true });
    await rm(this.#encodedPath, { force: true });
  }

  async #check(path: string): Promise<PictureFacts> {
    const options = { previewPath: this.#previewPath, maxPixels: MAX_PIXELS };
    return await this.#options.pictures.check(path, options).catch((error: unknown) => {
      throw isDisk(error) ? toDiskError(error, path) : this.#invalid(error);
    });
  }

  /** In the format asked for, and with its text where that is PNG. */
  async #encode(path: string): Promise<Incoming> {
    const { pictures, format } = this.#options;
    const to = this.#encodedPath;
    await pictures.encode(path, { to, format, maxPixels: MAX_PIXELS }).catch((error: unknown) => {
      throw isDisk(error) ? toDiskError(error, path) : this.#invalid(error);
    });
    this.#clear();
    const file = this.#open({ hasText: format === 'png' });
    this.#file = file;
    for await (const piece of createReadStream(to, { highWaterMark: PIECE_BYTES })) {
      await file.bytes.write(piece as Buffer); // without an encoding its chunks are Buffers
    }
    file.bytes.end();
    return file;
  }

  #open({ hasText }: { hasText: boolean }): Incoming {
    const { directory, textOf } = this.#options;
    const file = new DurableFile(join(directory, `${randomUUID()}.part`));
    const runMs = this.#runMs;
    const bytes = new FinalBytes({
      textOf: hasText ? (size) => textOf({ ...size, runMs }) : undefined,
      write: (piece) => file.write(piece),
    });
    return { file, bytes };
  }

  #clear(): void {
    const file = this.#file?.file;
    this.#file = undefined;
    if (file === undefined) return;
    this.#cleared = Promise.all([this.#cleared, file[Symbol.asyncDispose]()]);
  }

  #invalid(error: unknown): AppError {
    const why = error instanceof Error ? error.message : String(error);
    return new AppError(
      'RESULT_INVALID',
      `The engine returned ${this.#bytes} bytes that are not a complete image (${why}). The attempt failed; nothing was saved.`,
      { cause: error },
    );
  }
}

/** The decoder says what is wrong with a picture without a code; one with a code is the system's. */
function isDisk(error: unknown): boolean {
  return error instanceof Error && 'code' in error;
}

async function onDisk(done: Promise<void>, path: string): Promise<void> {
  await done.catch((error: unknown) => {
    throw toDiskError(error, path);
  });
}
