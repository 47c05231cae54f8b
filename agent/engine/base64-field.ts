/**
 * Takes the base64 string of one field out of JSON as it arrives, so that a 16 MB answer is decoded by the time its last
 * byte is here, and neither parsed nor held twice.
 */
export class Base64Field {
  readonly #key: Buffer;
  readonly #decoded: Buffer[] = [];
  #state: 'before' | 'colon' | 'inside' | 'done' = 'before';
  /** Bytes not yet consumed: the start of a key, or 1 to 3 base64 characters. */
  #rest: Buffer = Buffer.alloc(0);

  constructor(field: string) {
    this.#key = Buffer.from(`"${field}"`);
  }

  push(chunk: Buffer): void {
    if (this.#state === 'done') return;
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    this.#rest = this.#consume(bytes);
  }

  /** The decoded bytes; undefined where the field did not come, or did not end. */
  result(): Buffer | undefined {
    return this.#state === 'done' ? Buffer.concat(this.#decoded) : undefined;
  }

  #consume(bytes: Buffer): Buffer {
    switch (this.#state) {
      case 'before': {
        const at = bytes.indexOf(this.#key);
        if (at < 0) return bytes.subarray(Math.max(0, bytes.length - this.#key.length + 1));
        this.#state = 'colon';
        return this.#consume(bytes.subarray(at + this.#key.length));
      }
      case 'colon': {
        const text = bytes.toString('latin1');
        const opening = /^\s*:\s*"/.exec(text);
        if (opening !== null) {
          this.#state = 'inside';
          return this.#consume(bytes.subarray(opening[0].length));
        }
        if (/^\s*:?\s*$/.test(text)) return bytes;
        this.#state = 'before'; // null, or the key was a value: the next one may be it
        return this.#consume(bytes);
      }
      case 'inside': {
        const end = bytes.indexOf('"');
        const available = end < 0 ? bytes.length - (bytes.length % 4) : end;
        if (available > 0) this.#decoded.push(Buffer.from(bytes.toString('latin1', 0, available), 'base64'));
        if (end >= 0) this.#state = 'done';
        return end < 0 ? bytes.subarray(available) : Buffer.alloc(0);
      }
      case 'done':
        return Buffer.alloc(0);
    }
  }
}
