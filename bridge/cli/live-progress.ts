import { pause } from '../../shared/abort.ts';
import type { Doing, RunningBatch } from './ask.ts';
import { endedLine, newlyEnded, progressLine } from './progress-text.ts';
import type { Screen } from './screen.ts';

const TERMINAL_EVERY_MS = 200;
const LOOK_EVERY_MS = 500;
/** Without a terminal a line stays for good, so that there are few of them, and none for what takes no time. */
const LINE_EVERY_MS = 10_000;
const FIRST_LINE_MS = 3_000;
/** A look at 10,000 jobs takes a while: no more than this share of the time goes into looks. */
const LOOKING_SHARE = 0.1;
const CLEAR_LINE = '\r\u001b[2K';

/**
 * Shows work while it runs: on stderr a line that changes, or, where that is no terminal, one from time to time; the path of
 * each finished image on stdout, unless that is for JSON. Nothing is written after it is disposed.
 */
export class LiveProgress implements AsyncDisposable {
  readonly #screen: Screen;
  readonly #stop = new AbortController();
  readonly #told = new Set<string>();
  readonly #done: Promise<void>;
  #look: () => Doing = () => ({ message: 'looking for your hosts' });
  #batch: RunningBatch | undefined;
  /** What stands on the last line of a terminal, and what was said last where there is none. */
  #line = '';
  #saidAtMs = performance.now() + FIRST_LINE_MS - LINE_EVERY_MS;

  constructor(screen: Screen) {
    this.#screen = screen;
    this.#done = this.#run(this.#stop.signal);
  }

  /** From now on this is what is going on. */
  doing(look: () => Doing): void {
    this.#look = look;
  }

  /** From now on the images of this batch are shown as they finish. */
  follow(batch: RunningBatch): void {
    this.#batch = batch;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const everyMs = this.#screen.talk.columns === undefined ? LOOK_EVERY_MS : TERMINAL_EVERY_MS;
    while (!signal.aborted) {
      const startedMs = performance.now();
      this.#showEnded();
      this.#showDoing();
      await pause(Math.max(everyMs, (performance.now() - startedMs) / LOOKING_SHARE), signal);
    }
    this.#showEnded();
    this.#replaceLine('');
  }

  #showEnded(): void {
    const view = this.#batch?.view();
    if (view === undefined) return;
    for (const job of newlyEnded(view, this.#told)) {
      this.#replaceLine('');
      this.#told.add(job.jobId);
      const { out, talk, isJson } = this.#screen;
      const line = endedLine(job, { ended: this.#told.size, total: view.total });
      talk.write(`${job.state === 'failed' ? talk.paint('bad', line) : line}\n`);
      if (job.filePath !== undefined && !isJson) out.write(`${job.filePath}\n`);
    }
  }

  #showDoing(): void {
    const { talk } = this.#screen;
    if (talk.columns !== undefined) return this.#replaceLine(progressLine(this.#look(), talk.columns));
    const { message } = this.#look();
    const nowMs = performance.now();
    if (message === this.#line || nowMs - this.#saidAtMs < LINE_EVERY_MS) return;
    this.#line = message;
    this.#saidAtMs = nowMs;
    talk.write(`${message}\n`);
  }

  /** On a terminal only; elsewhere a line stays. */
  #replaceLine(line: string): void {
    const { talk } = this.#screen;
    if (talk.columns === undefined || line === this.#line) return;
    talk.write(`${CLEAR_LINE}${talk.paint('faint', line)}`);
    this.#line = line;
  }
}

/** Runs something with its progress shown, until it is over, whatever comes of it. */
export async function withProgress<T>(screen: Screen, run: (progress: LiveProgress) => Promise<T>): Promise<T> {
  await using progress = new LiveProgress(screen);
  return await run(progress);
}
