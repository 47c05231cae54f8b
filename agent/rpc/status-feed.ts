import { EventEmitter, once } from 'node:events';
import { Deadline, pause } from '../../shared/abort.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';

/** Receives every delta as the bytes of one frame, which all subscribers share. */
export type StatusListener = (delta: Buffer) => void;

/** Without an event the state is looked at this often: values age, and a hung nvidia-smi sends no event. */
const LOOK_EVERY_MS = 5_000;
/** Longer than the agent needs from the end of a job to the start of the next. */
const TOGETHER_MS = 4;
/** Times that run by themselves are worth a delta of their own only this often. */
const AGE_GRAIN_MS = 10_000;
const AGES = new Set(['ageMs', 'idleMs', 'heldAwayMs']);

export type StatusFeedOptions = {
  build: () => HostSnapshot;
  /** What others wait for, as a text: whenever it is another one, it is told without the gap. */
  atOnce?: () => string;
  minGapMs?: number;
};

/**
 * Publishes the snapshot's changed top-level fields, as often as something changed but at most every `minGapMs`; what
 * must not wait is told at once. Builds nothing while nobody is subscribed.
 */
export class StatusFeed implements AsyncDisposable {
  readonly #build: () => HostSnapshot;
  readonly #atOnce: () => string;
  readonly #minGapMs: number;
  readonly #stop = new AbortController();
  readonly #events = new EventEmitter();
  readonly #listeners = new Set<StatusListener>();
  #last: { snapshot: HostSnapshot; texts: Map<string, string> } | undefined;
  #snapshotFrame: Buffer | undefined;
  #told = '';
  #revision = 0;
  #isDirty = false;
  readonly done: Promise<void>;

  constructor({ build, atOnce = () => '', minGapMs = 250 }: StatusFeedOptions) {
    this.#build = build;
    this.#atOnce = atOnce;
    this.#minGapMs = minGapMs;
    this.done = this.#run(this.#stop.signal);
  }

  /** Something that the snapshot shows may have changed. */
  changed(): void {
    if (this.#listeners.size === 0) return;
    if (!this.#isDirty) {
      this.#isDirty = true;
      this.#events.emit('wake');
    }
    if (this.#atOnce() !== this.#told) this.#events.emit('urgent');
  }

  /** Deltas from now on; the first frame to send is `snapshotFrame()`. Returns the way to end it. */
  subscribe(listener: StatusListener): () => void {
    // While somebody listens the last state is followed anyway; a thousand that come at once do not build it anew each.
    if (this.#listeners.size === 0) {
      this.#publish();
      this.#events.emit('wake');
    }
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The whole state at the revision of the last delta, so that the next delta fits behind it. */
  snapshotFrame(): Buffer {
    if (this.#last === undefined) this.#publish();
    this.#snapshotFrame ??= frameOf('snapshot', { revision: this.#revision, snapshot: this.#last?.snapshot });
    return this.#snapshotFrame;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.done;
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (!this.#isDirty) await this.#nextWake(signal);
      // One event often follows another at once, as the start of a job the end of the one before: shown together.
      await pause(TOGETHER_MS, signal);
      if (signal.aborted) return;
      this.#isDirty = false;
      if (this.#listeners.size > 0) this.#publish();
      await this.#gap(signal);
    }
  }

  /** Shorter when something happens that may not wait. */
  async #gap(signal: AbortSignal): Promise<void> {
    using gap = new Deadline({ ms: this.#minGapMs, signal });
    await once(this.#events, 'urgent', { signal: gap.signal }).catch(() => undefined); // it only aborts: at the end of the gap
  }

  async #nextWake(signal: AbortSignal): Promise<void> {
    try {
      if (this.#listeners.size === 0) await once(this.#events, 'wake', { signal });
      else {
        using look = new Deadline({ ms: LOOK_EVERY_MS, signal });
        await once(this.#events, 'wake', { signal: look.signal });
      }
    } catch {
      // Stopped, or time to look anyway; the caller tells them apart by the signal.
    }
  }

  #publish(): void {
    const snapshot = this.#build();
    const texts = new Map(Object.entries(snapshot).map(([key, value]) => [key, comparable(value)]));
    const before = this.#last?.texts;
    this.#last = { snapshot, texts };
    this.#snapshotFrame = undefined;
    this.#told = this.#atOnce();
    if (before === undefined) return;
    const changed = Object.entries(snapshot).filter(([key]) => texts.get(key) !== before.get(key));
    if (changed.length === 0) return;
    this.#revision += 1;
    const delta = frameOf('delta', { revision: this.#revision, changed: Object.fromEntries(changed) });
    for (const listener of this.#listeners) listener(delta);
  }
}

function frameOf(method: 'snapshot' | 'delta', params: object): Buffer {
  return Buffer.from(JSON.stringify({ jsonrpc: '2.0', method, params }));
}

function comparable(value: unknown): string {
  return JSON.stringify(value, (key, field: unknown) =>
    AGES.has(key) && typeof field === 'number' ? Math.floor(field / AGE_GRAIN_MS) : field,
  );
}
