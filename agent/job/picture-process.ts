import type { ChildProcess } from 'node:child_process';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import type { ImageFormat } from '../../shared/job.ts';

const PROGRAM = fileURLToPath(new URL('./picture-worker.mjs', import.meta.url));
/** 80 megapixels take a few seconds. A decoder that is still at it after a minute hangs. */
const PICTURE_MS = 60_000;
/** Starting it takes as long as a small picture; keeping it for nothing takes 70 MB. */
const IDLE_MS = 10_000;
/** Without it each thread of the decoder keeps memory of its own. */
const ENVIRONMENT = { MALLOC_ARENA_MAX: '1' };

type Request = { path: string; maxPixels: number } & (
  | { kind: 'check'; previewPath: string }
  | { kind: 'encode'; to: string; format: ImageFormat }
  | { kind: 'clean'; to: string }
);

const Facts = z.object({ width: z.int(), height: z.int(), format: z.enum(['png', 'jpeg', 'webp']) });
export type PictureFacts = z.infer<typeof Facts>;
const Answer = z.union([
  z.object({ error: z.string(), code: z.string().optional() }),
  z.object({ value: z.unknown().optional() }),
]);

/**
 * The process that decodes pictures, one after another. It is started for the first one, or when somebody says that one
 * will come, and ended when none came for a while: an agent without work has none, and its own memory never holds a pixel.
 * A call rejects with what is wrong with the picture; an error with a `code` is the disk's. A process that dies or hangs
 * fails the picture it was at.
 */
export class PictureProcess implements AsyncDisposable {
  readonly #idleMs: number;
  #child: ChildProcess | undefined;
  #expected = 0;
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();
  #rest = new AbortController();
  #isDisposed = false;

  constructor({ idleMs = IDLE_MS }: { idleMs?: number } = {}) {
    this.#idleMs = idleMs;
  }

  /** A picture will come before this is disposed: it does not wait for a start then. */
  expect(): Disposable {
    this.#expected += 1;
    if (!this.#isDisposed) this.#start();
    let isOver = false;
    return {
      [Symbol.dispose]: () => {
        if (isOver) return;
        isOver = true;
        this.#expected -= 1;
        this.#restLater();
      },
    };
  }

  /** Decodes every pixel and writes a preview: JPEG, its longest side at most 1024. */
  async check(path: string, o: { previewPath: string; maxPixels: number }): Promise<PictureFacts> {
    return Facts.parse(await this.#ask({ kind: 'check', path, ...o }));
  }

  /** The same picture in another format: PNG without loss, JPEG at quality 95 on white, WebP at 90. */
  async encode(path: string, o: { to: string; format: ImageFormat; maxPixels: number }): Promise<void> {
    await this.#ask({ kind: 'encode', path, ...o });
  }

  /** A PNG of its pixels alone: upright, in sRGB, without metadata. */
  async clean(path: string, o: { to: string; maxPixels: number }): Promise<void> {
    await this.#ask({ kind: 'clean', path, ...o });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDisposed = true;
    this.#rest.abort();
    await this.#end();
  }

  /** One at a time: a picture takes a core, and the memory of one is bounded. */
  async #ask(request: Request): Promise<unknown> {
    this.#waiting += 1;
    const answer = this.#last.then(() => this.#send(request));
    this.#last = answer.catch(() => undefined); // who asked sees the failure
    try {
      return await answer;
    } finally {
      this.#waiting -= 1;
      this.#restLater();
    }
  }

  async #send(request: Request): Promise<unknown> {
    if (this.#isDisposed) throw new Error('the agent stops');
    const child = this.#start();
    using limit = new Deadline({ ms: PICTURE_MS });
    const over = new AbortController();
    const { signal } = over;
    try {
      const message = once(child, 'message', { signal }) as Promise<[unknown]>; // `any` by its own type
      const death = once(child, 'exit', { signal }).then((): never => {
        throw new Error('the decoder did not survive it');
      });
      child.send(request, (error) => error !== null && child.kill('SIGKILL')); // then `exit` tells
      const [said] = await untilAborted(Promise.race([message, death]), limit.signal);
      const answer = Answer.parse(said);
      if ('error' in answer) throw Object.assign(new Error(answer.error), answer.code && { code: answer.code });
      return answer.value;
    } catch (error) {
      if (!limit.isExpired) throw error;
      await this.#end();
      throw new Error(`it was not decoded within ${PICTURE_MS} ms`, { cause: error });
    } finally {
      over.abort();
    }
  }

  #start(): ChildProcess {
    this.#rest.abort();
    if (this.#child !== undefined) return this.#child;
    // In a group of its own, so that Ctrl-C ends the agent, which ends it after the last picture.
    const child = fork(PROGRAM, {
      detached: true,
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      execArgv: [],
      ...(process.platform !== 'win32' && { env: ENVIRONMENT }),
    });
    this.#child = child;
    child.setMaxListeners(0);
    const forget = (): void => {
      if (this.#child === child) this.#child = undefined;
    };
    child.once('exit', forget);
    child.on('error', () => {
      if (child.pid === undefined) child.emit('exit', null, null); // never started: whoever waits for its end has it
    });
    child.unref();
    child.channel?.unref();
    return child;
  }

  #restLater(): void {
    if (this.#expected > 0 || this.#waiting > 0 || this.#child === undefined || this.#isDisposed) return;
    this.#rest.abort();
    this.#rest = new AbortController();
    const { signal } = this.#rest;
    void pause(this.#idleMs, signal).then(() => (signal.aborted ? undefined : this.#end())); // neither rejects
  }

  async #end(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#child = undefined;
    const gone = once(child, 'exit');
    child.ref();
    child.kill('SIGKILL');
    await gone;
  }
}
