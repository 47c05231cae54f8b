/** What comes before the body of an answer; header names in lower case. */
export type AnswerHead = { status: number; headers: ReadonlyMap<string, string> };

/** A head or a line of a chunked body that is longer comes from no engine. */
const MOST_HEAD_BYTES = 64 * 1024;
const MOST_LINE_BYTES = 4 * 1024;
const LINE_FEED = 0x0a;

/**
 * One HTTP/1.1 answer to a request with `connection: close`, taken apart as it arrives. The body comes out in pieces of what
 * was pushed: nothing of it is copied or kept, so that whoever reads can use its memory again.
 */
export class HttpAnswer {
  readonly #onHead: (head: AnswerHead) => void;
  readonly #onBody: (bytes: Buffer) => void;
  /** `line`: of a chunked body, what comes next is its length, the break behind its bytes, or what follows the last. */
  #state: 'head' | 'sized' | 'to the end' | 'length line' | 'chunk' | 'break' | 'trailer' | 'done' = 'head';
  /** Of the head or of a line, as long as its end is not here. */
  #text = '';
  #left = 0;

  constructor(o: { onHead: (head: AnswerHead) => void; onBody: (bytes: Buffer) => void }) {
    this.#onHead = o.onHead;
    this.#onBody = o.onBody;
  }

  get isComplete(): boolean {
    return this.#state === 'done';
  }

  /** Throws where it is no HTTP. What comes behind the end is not looked at. */
  push(bytes: Buffer): void {
    for (let at = 0; at < bytes.length && this.#state !== 'done';)
      at += this.#step(at === 0 ? bytes : bytes.subarray(at));
  }

  /** The connection has ended. False where the answer had not. */
  end(): boolean {
    if (this.#state === 'to the end') this.#state = 'done';
    return this.isComplete;
  }

  /** How many of the bytes were used. */
  #step(bytes: Buffer): number {
    if (this.#state === 'sized' || this.#state === 'chunk') return this.#sized(bytes);
    if (this.#state !== 'to the end') return this.#line(bytes);
    this.#onBody(bytes);
    return bytes.length;
  }

  #sized(bytes: Buffer): number {
    const used = Math.min(this.#left, bytes.length);
    this.#left -= used;
    if (this.#left === 0) this.#state = this.#state === 'chunk' ? 'break' : 'done';
    this.#onBody(used === bytes.length ? bytes : bytes.subarray(0, used));
    return used;
  }

  #line(bytes: Buffer): number {
    const end = bytes.indexOf(LINE_FEED);
    const used = end < 0 ? bytes.length : end + 1;
    this.#text += bytes.toString('latin1', 0, used);
    if (this.#text.length > (this.#state === 'head' ? MOST_HEAD_BYTES : MOST_LINE_BYTES))
      throw notHttp('a line has no end');
    if (end < 0) return used;
    if (this.#state === 'head') {
      if (/\r?\n\r?\n$/.test(this.#text)) this.#head(this.#taken());
      return used;
    }
    const line = this.#taken().trim();
    if (this.#state === 'length line') this.#length(line);
    else if (this.#state === 'break') {
      if (line !== '') throw notHttp('a chunk is longer than it said');
      this.#state = 'length line';
    } else if (line === '') this.#state = 'done'; // the last of the trailer
    return used;
  }

  #taken(): string {
    const text = this.#text;
    this.#text = '';
    return text;
  }

  #length(line: string): void {
    const [, hex] = /^([0-9a-f]{1,12})\s*(;.*)?$/i.exec(line) ?? [];
    if (hex === undefined) throw notHttp('a chunk has no length');
    this.#left = Number.parseInt(hex, 16);
    this.#state = this.#left === 0 ? 'trailer' : 'chunk';
  }

  #head(text: string): void {
    const [first = '', ...lines] = text.trimEnd().split(/\r?\n/);
    const [, code] = /^HTTP\/1\.[01] ([1-5]\d\d)( |$)/.exec(first) ?? [];
    if (code === undefined) throw notHttp('its first line is none of HTTP/1.1');
    const status = Number(code);
    if (status < 200) return; // on the way to the answer
    const headers = new Map<string, string>();
    for (const line of lines) {
      const [, name, value] = /^([!#$%&'*+.^_`|~\w-]+):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
      if (name === undefined || value === undefined) throw notHttp('a header is none');
      headers.set(name.toLowerCase(), value);
    }
    this.#state = this.#framing(status, headers);
    this.#onHead({ status, headers });
  }

  #framing(status: number, headers: ReadonlyMap<string, string>): 'sized' | 'to the end' | 'length line' | 'done' {
    const coding = headers.get('transfer-encoding')?.toLowerCase();
    if (coding !== undefined && coding !== 'chunked') throw notHttp(`its transfer-encoding is ${coding.slice(0, 40)}`);
    if (status === 204 || status === 304) return 'done';
    if (coding === 'chunked') return 'length line';
    const length = headers.get('content-length');
    if (length === undefined) return 'to the end';
    if (!/^\d{1,15}$/.test(length)) throw notHttp('its content-length is no number');
    this.#left = Number(length);
    return this.#left === 0 ? 'done' : 'sized';
  }
}

function notHttp(why: string): Error {
  return new Error(`the answer is no HTTP: ${why}`);
}
