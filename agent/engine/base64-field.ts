const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SPACES = new Set([0x20, 0x09, 0x0a, 0x0d]);
const COLON = 0x3a;

/**
 * Takes the base64 string of one field out of JSON as it arrives, so that a 16 MB answer is decoded by the time its last
 * byte is here, and never held: only the length of the field's name and three characters are. The first string under
 * that name counts, at any depth; a later one, and one inside another string, is not looked at.
 */
export class Base64Field {
  readonly #name: Buffer;
  /** `inside` is inside the wanted value; `string` inside any other string, a key among them. */
  #state: 'outside' | 'string' | 'after name' | 'after colon' | 'inside' | 'done' = 'outside';
  /** What is known of the string under way, and how much of it there was: a longer one than the name is not kept. */
  #text: Buffer = Buffer.alloc(0);
  /** The next byte belongs to a backslash. */
  #isEscaped = false;
  /** 1 to 3 characters of base64 whose group is not complete. */
  #rest = '';

  constructor(name: string) {
    this.#name = Buffer.from(name);
  }

  /** The value came, with its end. */
  get isComplete(): boolean {
    return this.#state === 'done';
  }

  /** What can be decoded now; often nothing, or all of the chunk. */
  push(chunk: Buffer): Buffer | undefined {
    let at = 0;
    while (at < chunk.length) {
      if (this.#state === 'done') return undefined;
      if (this.#state === 'inside') return this.#decode(chunk.subarray(at)); // to the end, whatever follows
      at = this.#state === 'string' ? this.#string(chunk, at) : this.#between(chunk, at);
    }
    return undefined;
  }

  /** Outside strings: to the next one, keeping in mind what stands between a name and its value. */
  #between(chunk: Buffer, from: number): number {
    if (this.#state === 'outside') {
      const quote = chunk.indexOf(QUOTE, from);
      if (quote < 0) return chunk.length;
      this.#begin('string');
      return quote + 1;
    }
    const byte = chunk[from] ?? 0;
    if (SPACES.has(byte)) return from + 1;
    if (byte === COLON && this.#state === 'after name') this.#state = 'after colon';
    else if (byte === QUOTE) this.#begin(this.#state === 'after colon' ? 'inside' : 'string');
    else this.#state = 'outside'; // null, or the name was a value: the next one may be it
    return from + 1;
  }

  #begin(state: 'string' | 'inside'): void {
    this.#state = state;
    this.#text = Buffer.alloc(0);
    this.#isEscaped = false;
  }

  /** Byte by byte: other strings of an answer are short, and a long one costs no more than its length. */
  #string(chunk: Buffer, from: number): number {
    let at = from;
    for (; at < chunk.length; at += 1) {
      const byte = chunk[at];
      if (this.#isEscaped) this.#isEscaped = false;
      else if (byte === BACKSLASH) this.#isEscaped = true;
      else if (byte === QUOTE) break;
    }
    this.#keep(chunk.subarray(from, at));
    if (at === chunk.length) return at;
    this.#state = this.#text.equals(this.#name) ? 'after name' : 'outside';
    return at + 1;
  }

  #keep(bytes: Buffer): void {
    if (this.#text.length > this.#name.length) return;
    this.#text = Buffer.concat([this.#text, bytes.subarray(0, this.#name.length + 1)]);
  }

  /**
   * Into the place where the characters stood: three bytes need less of it than four characters. So a picture of 12 MB
   * leaves 16 MB for the collector and not 40.
   */
  #decode(bytes: Buffer): Buffer {
    const quote = bytes.indexOf(QUOTE);
    if (quote >= 0) this.#state = 'done';
    const text = this.#unescaped(quote < 0 ? bytes : bytes.subarray(0, quote));
    const [rest, missing] = [this.#rest, (4 - this.#rest.length) % 4];
    if (text.length < missing || quote >= 0) return this.#decodeLast(rest + text.toString('latin1'));
    const whole = text.length - ((text.length - missing) % 4);
    const body = text.toString('latin1', missing, whole);
    const first = rest + text.toString('latin1', 0, missing);
    this.#rest = text.toString('latin1', whole);
    // The first group may be of characters that came with the chunk before: its bytes have room only if some are here.
    const begin = first.length === 0 ? 0 : 3;
    const room = begin + (body.length / 4) * 3;
    const out = room <= text.length ? text : Buffer.allocUnsafe(room);
    const written = out.write(first, 0, 'base64');
    return out.subarray(0, written + out.write(body, written, 'base64'));
  }

  /** A few characters, or all that is left: here the last group may have padding. */
  #decodeLast(text: string): Buffer {
    const whole = this.#state === 'done' ? text.length : text.length - (text.length % 4);
    this.#rest = text.slice(whole);
    return Buffer.from(text.slice(0, whole), 'base64');
  }

  /** The one escape that a writer of base64 may make is that of the slash: without backslashes it is base64 again. */
  #unescaped(text: Buffer): Buffer {
    if (!text.includes(BACKSLASH)) return text;
    return Buffer.from(text.toString('latin1').replaceAll('\\', ''), 'latin1');
  }
}
