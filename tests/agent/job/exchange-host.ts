import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import type { Session } from '../../../agent/job/session.ts';
import { Drain } from '../../../agent/job/drain.ts';
import { Exchange } from '../../../agent/job/exchange.ts';
import { InputStore } from '../../../agent/job/input-store.ts';
import { Journal } from '../../../agent/job/journal.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import type { Servers } from '../../../agent/job/servers.ts';
import { pause } from '../../../shared/abort.ts';
import type { Job, JobClass, JobRequest } from '../../../shared/job.ts';
import type { AgentJob, Notification, OfferLine, Params } from '../../../shared/protocol.ts';
import { generate } from '../model/model-host.ts';

export const log = pino({ level: 'silent' });

const TIMES = { grantMs: 5_000, inputSilenceMs: 60_000, turnMs: 30_000, moveAnswerMs: 8_000 };

/** `directory`: another host's, as an agent finds it that comes back. */
export type ExchangeOverrides = {
  times?: Partial<typeof TIMES>;
  quotaBytes?: number;
  directory?: string;
  /** A person took the host out of service before. */
  isDraining?: boolean;
  onChange?: () => void;
};

/** The real exchange with its real journal and stores in a temporary directory, on servers the test chooses. */
export class ExchangeHost implements AsyncDisposable {
  readonly directory: string;
  readonly exchange: Exchange;
  readonly journal: Journal;
  readonly results: ResultStore;
  readonly inputs: InputStore;
  readonly pictures: PictureProcess;
  readonly #isOwner: boolean;
  readonly #bridges: TestBridge[] = [];

  private constructor(
    o: Pick<ExchangeHost, 'directory' | 'exchange' | 'journal' | 'results' | 'inputs' | 'pictures'>,
    isOwner: boolean,
  ) {
    this.directory = o.directory;
    this.exchange = o.exchange;
    this.journal = o.journal;
    this.results = o.results;
    this.inputs = o.inputs;
    this.pictures = o.pictures;
    this.#isOwner = isOwner;
  }

  static async start(residency: Servers, options: ExchangeOverrides = {}): Promise<ExchangeHost> {
    const directory = options.directory ?? (await mkdtemp(join(tmpdir(), 'gantry-exchange-')));
    const journal = await Journal.open({ dir: directory, log });
    const pictures = new PictureProcess();
    const stores = { quotaBytes: options.quotaBytes ?? 1e9, keptMs: 1e9, pictures, log };
    const results = await ResultStore.open({ dir: join(directory, 'results'), ...stores });
    const inputs = await InputStore.open({ dir: join(directory, 'inputs'), quotaBytes: 1e9, pictures, log });
    const times = { ...TIMES, ...options.times };
    const rest = {
      times,
      isSimulated: () => true,
      hostname: 'box',
      log,
      onChange: options.onChange ?? (() => undefined),
    };
    const drain = await Drain.open({ stateDir: directory, log });
    if (options.isDraining === true) await drain.set(true);
    const exchange = new Exchange({ residency, journal, results, inputs, drain, ...rest });
    const parts = { directory, exchange, journal, results, inputs, pictures };
    return new ExchangeHost(parts, options.directory === undefined);
  }

  bridge(tokenId = 'token-a', bridgeId = randomUUID()): TestBridge {
    const bridge = new TestBridge(this.exchange, { tokenId, bridgeId });
    this.#bridges.push(bridge);
    return bridge;
  }

  /** As if all laptops went away. */
  closeBridges(): void {
    for (const { session } of this.#bridges.splice(0)) session.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.exchange[Symbol.asyncDispose]();
    await this.journal[Symbol.asyncDispose]();
    await this.pictures[Symbol.asyncDispose]();
    if (this.#isOwner) await rm(this.directory, { recursive: true, force: true });
  }
}

type Grant = Extract<Notification, { method: 'slot.grant' }>['params'];

/** A bridge without a network: it sees every notification, and takes grants when it is told to. */
export class TestBridge {
  readonly session: Session;
  readonly notifications: Notification[] = [];
  readonly grants: Grant[] = [];
  isReplaced = false;
  /** Jobs taken at the next grants of their model, in their order. */
  #waiting: Job[] = [];
  #listeners = new Set<() => void>();

  constructor(exchange: Exchange, { tokenId, bridgeId }: { tokenId: string; bridgeId: string }) {
    this.session = exchange.openSession({
      token: { id: tokenId, role: 'operator' },
      bridgeId,
      notify: (notification) => this.#notified(notification),
      onReplaced: () => (this.isReplaced = true),
    });
  }

  /** Offers these jobs and takes a grant for each. */
  work(jobs: readonly Job[], runMs = 100): void {
    this.#waiting = [...jobs];
    this.#offerWaiting(runMs);
  }

  offer(model: string, more: Partial<OfferLine> = {}): void {
    const line = { count: 1, workMs: 100, longestMs: 100, maxMegapixels: 0.02, inFlight: 0, class: 'batch' as const };
    this.session.offer([{ ...line, model, ...more }]);
  }

  async grant(nth = 1): Promise<Grant> {
    return await this.until(() => this.grants[nth - 1]);
  }

  async take(grant: Grant, job: Job): Promise<AgentJob> {
    return (await this.session.take({ grantId: grant.grantId, job })).job;
  }

  of<M extends Notification['method']>(method: M): Extract<Notification, { method: M }>['params'][] {
    return this.notifications.flatMap((each) => (each.method === method ? [each.params as never] : [])); // by its method
  }

  async done(jobId: string): Promise<Extract<Notification, { method: 'job.done' }>['params']> {
    return await this.until(() => this.of('job.done').find((each) => each.jobId === jobId));
  }

  async failed(jobId: string): Promise<Extract<Notification, { method: 'job.failed' }>['params']> {
    return await this.until(() => this.of('job.failed').find((each) => each.jobId === jobId));
  }

  /** Looks again at each notification until there is an answer. */
  async until<T>(look: () => T | undefined, withinMs = 60_000): Promise<T> {
    const endMs = performance.now() + withinMs;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      if (performance.now() > endMs)
        throw new Error(`nothing in ${withinMs} ms; last: ${JSON.stringify(this.notifications.at(-1))}`);
      const gaveUp = new AbortController();
      const notified = new Promise<void>((resolve) => this.#listeners.add(resolve));
      await Promise.race([notified, pause(endMs - performance.now(), gaveUp.signal)]);
      gaveUp.abort();
    }
  }

  #notified(notification: Notification): void {
    this.notifications.push(notification);
    if (notification.method === 'slot.grant') this.#granted(notification.params);
    const listeners = [...this.#listeners];
    this.#listeners.clear();
    for (const listener of listeners) listener();
  }

  #granted(grant: Grant): void {
    this.grants.push(grant);
    const job = this.#waiting.find((each) => each.request.model === grant.model && each.class === grant.class);
    if (job === undefined) return;
    this.#waiting = this.#waiting.filter((each) => each !== job);
    const params: Params<'job.take'> = { grantId: grant.grantId, job };
    void this.session.take(params); // a refusal shows as a missing job.done
  }

  #offerWaiting(runMs: number): void {
    const keys = new Set(this.#waiting.map((job) => `${job.class} ${job.request.model}`));
    this.session.offer(
      [...keys].map((key) => {
        const jobs = this.#waiting.filter((job) => `${job.class} ${job.request.model}` === key);
        const [first] = jobs;
        if (first === undefined) throw new Error('a key of nothing');
        const line = {
          model: first.request.model,
          class: first.class,
          count: jobs.length,
          workMs: jobs.length * runMs,
        };
        return { ...line, longestMs: runMs, maxMegapixels: 0.02, inFlight: 0 };
      }),
    );
  }
}

export function jobOf(request: Partial<JobRequest> & { model?: string } = {}, more: Partial<Job> = {}): Job {
  const base = generate();
  const frozen = { ...base, ...request } as JobRequest; // tests say which kind they mean
  const kind: JobClass = 'batch';
  return { jobId: randomUUID(), attempt: 1, class: kind, request: frozen, ...more };
}
