import type { SimulatedSignal } from './abort.ts';
import type { HttpReply } from './network.ts';
import { network } from './network.ts';
import type { Event, Process } from './world.ts';
import { world } from './world.ts';

/** In the place of shared/http-client.ts: the same promises over the simulated network. */

export type HttpOptions = {
  method?: string;
  headers?: Record<string, unknown>;
  signal: SimulatedSignal;
  deadlineMs: number;
};
export type HttpAnswer = { status: number; headers: Record<string, string>; body: Body };
export type Tls = { ca: string; servername: string };

const CHUNK_BYTES = 700;

function failure(code: string): Error {
  return Object.assign(new Error(code), { code });
}

/** The bytes of an answer as they come, until the last one, an error, or nobody wants them any more. */
export class Body {
  #chunks: Buffer[] = [];
  #error: Error | undefined;
  #isWhole = false;
  #isDestroyed = false;
  #wake: () => void = () => undefined;
  onEnd: () => void = () => undefined;

  push(chunk: Buffer): void {
    if (this.#isDestroyed) return;
    this.#chunks.push(chunk);
    this.#wake();
  }

  end(error?: Error): void {
    if (this.#isWhole || this.#error !== undefined) return;
    if (error === undefined) this.#isWhole = true;
    else this.#error = error;
    this.onEnd();
    this.#wake();
  }

  resume(): this {
    return this;
  }

  destroy(): this {
    this.#isDestroyed = true;
    this.onEnd();
    this.#wake();
    return this;
  }

  get isDestroyed(): boolean {
    return this.#isDestroyed;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (;;) {
      const chunk = this.#chunks.shift();
      if (chunk !== undefined) yield chunk;
      else if (this.#error !== undefined) throw this.#error;
      else if (this.#isWhole) return;
      else if (this.#isDestroyed) throw failure('ERR_STREAM_PREMATURE_CLOSE');
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

export async function openHttp(url: string, o: HttpOptions): Promise<HttpAnswer> {
  o.signal.throwIfAborted();
  const { current } = world();
  if (current === undefined) throw new Error('no process asks');
  return await new Promise((resolve, reject) => new Exchange(current, { url, o, resolve, reject }).begin());
}

export async function readBody(answer: HttpAnswer, { maxBytes }: { maxBytes: number }): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer.body) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new Error(`answer is larger than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

export async function fetchBody(
  url: string,
  o: HttpOptions & { maxBytes: number },
): Promise<{ status: number; headers: Record<string, string>; body: Buffer }> {
  const answer = await openHttp(url, o);
  return { status: answer.status, headers: answer.headers, body: await readBody(answer, o) };
}

type Asked = {
  url: string;
  o: HttpOptions;
  resolve: (answer: HttpAnswer) => void;
  reject: (error: Error) => void;
};

/** One request and its answer, on a connection of its own. */
class Exchange {
  readonly #client: Process;
  readonly #asked: Asked;
  readonly #body = new Body();
  readonly #late: Event;
  #isAnswered = false;
  #isOver = false;

  constructor(client: Process, asked: Asked) {
    this.#client = client;
    this.#asked = asked;
    const { signal, deadlineMs } = asked.o;
    const onAbort = (): void => this.#fail(signal.reason as Error);
    this.#late = world().timer(deadlineMs, client, () => this.#fail(failure('ETIMEDOUT')));
    this.#body.onEnd = () => {
      this.#isOver = true;
      this.#late.run = undefined;
      signal.removeEventListener('abort', onAbort);
    };
    signal.addEventListener('abort', onAbort);
  }

  begin(): void {
    const { url, o } = this.#asked;
    const { hostname, pathname } = new URL(url);
    const headers = Object.fromEntries(Object.entries(o.headers ?? {}).map(([key, value]) => [key, String(value)]));
    const token = (headers['authorization'] ?? '').replace('Bearer ', '');
    this.#travel(hostname, undefined, () => {
      const listener = network().listenerOf(hostname);
      if (listener === undefined) {
        this.#travel(hostname, this.#client, () => this.#fail(failure('ECONNREFUSED')));
        return;
      }
      const { process } = listener;
      const forget = process.onDeath(() => {
        if (process.machine.isOn) this.#travel(hostname, this.#client, () => this.#fail(failure('ECONNRESET')));
      });
      world().runAs(process, () => {
        listener
          .onRequest({ path: pathname, token, headers })
          .then((reply) => this.#send(hostname, { process, reply, forget, from: 0 }))
          .catch((error: unknown) => world().say('http', () => String(error)));
      });
    });
  }

  #send(host: string, o: { process: Process; reply: HttpReply; forget: () => void; from: number }): void {
    if (this.#isOver) return void o.forget();
    const { process, reply, from } = o;
    const chunk = reply.body.subarray(from, from + CHUNK_BYTES);
    const isLast = from + chunk.length >= reply.body.length;
    this.#travel(host, this.#client, () => {
      if (this.#isOver) return;
      this.#answer(reply);
      if (chunk.length > 0) this.#body.push(chunk);
      if (isLast) this.#body.end();
    });
    if (isLast) o.forget();
    else world().after(0.5, process, () => this.#send(host, { ...o, from: from + chunk.length }));
  }

  #answer({ status, headers }: HttpReply): void {
    if (this.#isAnswered) return;
    this.#isAnswered = true;
    this.#asked.resolve({ status, headers, body: this.#body });
  }

  #fail(error: Error): void {
    if (this.#isOver) return;
    this.#body.end(error);
    if (!this.#isAnswered) this.#asked.reject(error);
    this.#isAnswered = true;
  }

  /** On a way that is lost it waits; TCP would send it again. */
  #travel(host: string, process: Process | undefined, then: () => void): void {
    const way = network().way(this.#client.machine.name, host);
    const direction = process === undefined ? 'toHost' : 'toBridge';
    world().after(way.latencyMs, undefined, () => {
      if (way.isLost[direction]) way.waiting.push(() => this.#travel(host, process, then));
      else if (network().isOn(host)) {
        if (process === undefined) then();
        else world().runAs(process, then);
      }
    });
  }
}
