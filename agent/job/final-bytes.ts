import type { Hash } from 'node:crypto';
import { createHash } from 'node:crypto';
import type { PngSize, TextChunk } from '../../shared/png-text.ts';
import { PNG_HEAD_BYTES, encodeTextChunks, pngSize } from '../../shared/png-text.ts';

type Options = {
  /** The text of a PNG of that size; undefined where none is put in. */
  textOf: ((size: PngSize) => readonly TextChunk[]) | undefined;
  /** Undefined, or a promise that resolves when more may come. */
  write: (bytes: Buffer) => Promise<void> | undefined;
};

/** A picture on its way to where it stays: hashed, and with text put in behind its head where it is a PNG. */
export class FinalBytes {
  readonly #options: Options;
  readonly #hash: Hash = createHash('sha256');
  /** The start, until it is long enough to tell what it is. */
  #head: Buffer | undefined = Buffer.alloc(0);
  #bytes = 0;
  #hasText = false;

  constructor(options: Options) {
    this.#options = options;
  }

  /** Nothing has to be done to it: it is a PNG with its text. */
  get isFinal(): boolean {
    return this.#hasText;
  }

  write(bytes: Buffer): Promise<void> | undefined {
    if (this.#head === undefined) return this.#put(bytes);
    const head = Buffer.concat([this.#head, bytes]);
    this.#head = head.length < PNG_HEAD_BYTES ? head : undefined;
    return this.#head === undefined ? this.#begin(head) : undefined;
  }

  /** After the last byte. */
  end(): void {
    const head = this.#head;
    this.#head = undefined;
    if (head !== undefined) void this.#put(head); // shorter than any picture
  }

  result(): { sha256: string; bytes: number } {
    return { sha256: this.#hash.digest('hex'), bytes: this.#bytes };
  }

  #begin(start: Buffer): Promise<void> | undefined {
    const size = pngSize(start);
    const { textOf } = this.#options;
    if (textOf === undefined || size === undefined) return this.#put(start);
    this.#hasText = true;
    void this.#put(start.subarray(0, PNG_HEAD_BYTES)); // the last of the three waits for all
    void this.#put(encodeTextChunks(textOf(size)));
    return this.#put(start.subarray(PNG_HEAD_BYTES));
  }

  #put(bytes: Buffer): Promise<void> | undefined {
    this.#bytes += bytes.length;
    this.#hash.update(bytes);
    return this.#options.write(bytes);
  }
}
