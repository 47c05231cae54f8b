import { setMaxListeners } from 'node:events';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { JobClass, JobRequest } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, Method, Notification, Params, Result } from '../../shared/protocol.ts';
import { AgentLink } from './agent-link.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import type { BatchView } from './batch-view.ts';
import type { Batch } from './batch.ts';
import { Batches } from './batches.ts';
import type { FleetSide } from './batch-book.ts';
import { forecastNew } from './forecast.ts';
import type { Forecast } from './forecast.ts';
import { whyHopeless } from './hopeless.ts';
import { HostEvents } from './host-events.ts';
import type { BridgeTimes, HostConfig, HostView } from './host-view.ts';
import type { OwnWork } from './placement.ts';
import { WorkDesk } from './work-desk.ts';

type FleetOptions = {
  hosts: HostConfig[];
  bridgeId: string;
  clientName: () => string;
  stateDir: string;
  times: BridgeTimes;
  /** Slots of all hosts together that one batch may have, where its order does not say; undefined: all. */
  maxConcurrent?: number | undefined;
  log: Log;
  /** Whether images that cannot carry their parameters get a file that does. */
  hasSideCars?: boolean;
  /** Called before a batch ends; a failure is logged, and the batch ends all the same. */
  onEnding?: (view: BatchView) => Promise<unknown>;
  /** Called before the record of an old batch is removed; where it fails the record stays. */
  onRemoving?: (batchId: string) => Promise<void>;
};

const TICK_MS = 250;
const IDLE_TICK_MS = 1_000;
const RESCAN_MS = 15_000;
const DETACH_MS = 1_000;
const LISTED = 50;
/** An agent that is started for this bridge takes seconds on a busy machine. */
const REACHED_MS = 25_000;

/**
 * All configured hosts and all batches of this process: keeps the links, offers what waits, answers grants, and knows
 * every batch in the state directory, also those of other processes.
 */
export class Fleet implements AsyncDisposable {
  readonly #options: FleetOptions;
  readonly #stop = new AbortController();
  readonly #links = new Map<string, AgentLink>();
  readonly #batches: Batches;
  readonly #desk: WorkDesk;
  readonly #events: HostEvents;
  readonly #changes = new Set<() => void>();
  readonly #work = new Set<Promise<void>>();
  #running: Promise<void> | undefined;
  #detaching: Promise<void> | undefined;

  constructor(options: FleetOptions) {
    this.#options = options;
    setMaxListeners(0, this.#stop.signal); // one for each request under way: many are no leak
    const side: FleetSide = {
      times: options.times,
      log: options.log,
      ...(options.hasSideCars !== undefined && { hasSideCars: options.hasSideCars }),
      hosts: () => this.hosts(),
      link: (host) => this.#links.get(host),
      holdings: () => this.#desk.holdings(),
      waitingBefore: (batchId) => this.#desk.waitingBefore(batchId),
      changed: () => this.#changed(),
      holdOff: (host, error) => this.#desk.holdOff(host, error),
      onEnding: async (view) => {
        await options.onEnding?.(view);
      },
      heldOff: (host) => this.#desk.heldOff(host),
    };
    this.#batches = new Batches({
      root: join(options.stateDir, 'batches'),
      side,
      clientName: options.clientName,
      signal: this.#stop.signal,
      onResumed: (batch) => this.#events.onResumed(batch),
      onRemoving: options.onRemoving,
      own: (work) => this.#own(work),
    });
    this.#desk = new WorkDesk({
      batches: this.#batches.own,
      links: this.#links,
      hosts: () => this.hosts(),
      offerEveryMs: options.times.offerEveryMs,
      log: options.log,
      signal: this.#stop.signal,
    });
    this.#events = new HostEvents({
      batches: this.#batches,
      desk: this.#desk,
      link: side.link,
      changed: side.changed,
      own: (work) => this.#own(work),
      signal: this.#stop.signal,
    });
  }

  /** Opens the links and resumes unfinished batches whose lock is free. May be called at every tool call. */
  open(): void {
    this.connect();
    this.#running ??= this.#run(this.#stop.signal);
    this.#rescan(5_000);
  }

  /** Opens the links only, for somebody who looks and takes over nothing. */
  connect(): void {
    if (this.#stop.signal.aborted) throw new Error('this fleet is detached');
    for (const host of this.#options.hosts) {
      if (this.#links.has(host.name)) continue;
      const { bridgeId, clientName, times, log } = this.#options;
      const listener = {
        onChange: () => this.#tellChange(),
        onHello: (jobs: AgentJob[]) => this.#events.onHello(host.name, jobs),
        onNotification: (notification: Notification) => this.#events.onNotification(host.name, notification),
        onDown: () => this.#events.onDown(host.name),
      };
      const twinOf = (epoch: string): string | undefined => this.#nameOf(epoch);
      this.#links.set(host.name, new AgentLink({ host, bridgeId, clientName, times, log, twinOf, listener }));
    }
  }

  /** Until each link is up with a snapshot or has failed once, or the time is over; longer where an agent has to start. */
  async settled({ signal, withinMs }: { signal: AbortSignal; withinMs: number }): Promise<void> {
    // Not AbortSignal.any with a time-out: Node 20 forgets such a time-out at the next garbage collection.
    using late = new Deadline({ ms: withinMs, signal });
    using latest = new Deadline({ ms: Math.max(withinMs, REACHED_MS), signal });
    while (![...this.#links.values()].every((link) => link.hasSettled)) {
      const limit = [...this.#links.values()].some((link) => link.isReaching) ? latest : late;
      try {
        await untilAborted(untilAborted(this.#nextChange(), limit.signal), this.#stop.signal);
      } catch (error) {
        if (limit.isExpired) return;
        throw error;
      }
    }
  }

  /** In the order of the configuration. */
  hosts(): HostView[] {
    return this.#options.hosts.map(
      (host) =>
        this.#links.get(host.name)?.view() ?? {
          name: host.name,
          url: host.url,
          link: { kind: 'connecting' },
          snapshot: undefined,
          statusAgeMs: 0,
          transferMs: 0,
        },
    );
  }

  async request<M extends Method>(host: string, method: M, params: Params<M>, signal: AbortSignal): Promise<Result<M>> {
    const link = this.#links.get(host);
    if (link === undefined) throw this.#unknownHost(host);
    return await link.request(method, params, signal);
  }

  /** This bridge's jobs that the hosts' status does not show yet; for `expectedFinishes`. */
  ownWork(): OwnWork {
    return this.#desk.ownWork();
  }

  /**
   * When and where jobs would be done that are asked for now: what a batch of them would be told. Nothing is started.
   * `hosts` where somebody wonders what would be if they were otherwise.
   */
  forecast(requests: readonly JobRequest[], jobClass: JobClass, hosts = this.hosts()): Forecast {
    return forecastNew(requests, {
      class: jobClass,
      hosts,
      before: this.#desk.waitingBeforeNew(jobClass).map(({ job, rules }) => ({ request: job.request, rules })),
      holdings: this.#desk.holdings(),
      own: this.ownWork(),
      maxConcurrent: this.#options.maxConcurrent,
      nowMs: performance.now(),
    });
  }

  /** A new batch, durable when this resolves. Refused when it can never run on the hosts as they are. */
  async start(order: BatchOrder): Promise<Batch> {
    this.open();
    this.#refuseHopeless(order);
    const { maxConcurrent } = this.#options;
    const batch = await this.#batches.start({ ...order, maxConcurrent: order.maxConcurrent ?? maxConcurrent });
    this.#tellChange();
    this.#desk.flush('a new batch');
    return batch;
  }

  /** The batch with this id, or with the job of this id, while this process works on it. */
  batch(id: string): Batch | undefined {
    return this.#batches.batch(id);
  }

  /** As `batch`, and also what other processes have and had. */
  find(id: string): BatchView | undefined {
    return this.#batches.find(id);
  }

  /** Newest first, at most so many. */
  list(limit = LISTED): BatchView[] {
    return this.#batches.list(limit);
  }

  /** Which process of this machine works on a batch; undefined when none does. */
  async holder(batchId: string): Promise<LockHolder | undefined> {
    return await this.#batches.holder(batchId);
  }

  /** Ends a batch or one job of it. Another process that holds it is asked, and does it within seconds; see `isOurs`. */
  async cancel(id: string): Promise<BatchView> {
    const view = await this.#batches.cancel(id);
    if (!view.isOurs && view.state === 'running') this.#rescan(0); // if nobody holds it any more, this process ends it
    return view;
  }

  /** Leaves the fleet within 2 s: offers are withdrawn, accepted jobs run on, unfinished batches wait for the next bridge. */
  async detach(): Promise<void> {
    this.#detaching ??= this.#detach();
    await this.#detaching;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
  }

  async #detach(): Promise<void> {
    this.#stop.abort(new AppError('INTERRUPTED', 'This bridge ends.'));
    await this.#running;
    await this.#desk.withdraw(AbortSignal.timeout(DETACH_MS));
    await this.#batches.close();
    await Promise.all([...this.#links.values()].map((link) => link[Symbol.asyncDispose]()));
    await this.#desk.idle();
    while (this.#work.size > 0) await Promise.all(this.#work);
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const isActive = [...this.#batches.own.values()].some((batch) => !batch.isEnded);
      await pause(isActive ? Math.min(TICK_MS, this.#options.times.offerEveryMs) : IDLE_TICK_MS, signal);
      if (signal.aborted) return;
      this.#batches.tick();
      this.#desk.flush();
      this.#rescan(RESCAN_MS);
    }
  }

  /** Under which name the agent is connected that runs as this epoch. */
  #nameOf(epoch: string): string | undefined {
    return [...this.#links.values()].find((link) => link.epoch === epoch)?.name;
  }

  #tellChange(): void {
    for (const change of [...this.#changes]) change();
  }

  #changed(): void {
    this.#tellChange();
    this.#desk.changed();
  }

  #rescan(everyMs: number): void {
    this.#own(this.#batches.rescan(everyMs));
  }

  #refuseHopeless(order: BatchOrder): void {
    const { hosts } = this.#options;
    if (order.host !== undefined && !hosts.some(({ name }) => name === order.host)) throw this.#unknownHost(order.host);
    const error = whyHopeless(order, this.hosts());
    if (error !== undefined) throw error;
  }

  #unknownHost(host: string): AppError {
    const names = this.#options.hosts.map(({ name }) => name).join(', ');
    return new AppError(
      'INVALID_ARGUMENT',
      `No host is named ${host}. Configured hosts: ${names === '' ? 'none' : names}.`,
    );
  }

  async #nextChange(): Promise<void> {
    await new Promise<void>((resolve) => {
      const change = (): void => {
        this.#changes.delete(change);
        resolve();
      };
      this.#changes.add(change);
    });
  }

  #own(work: Promise<unknown> | undefined): void {
    if (work === undefined) return;
    const owned: Promise<void> = work
      .then(
        () => undefined,
        (error: unknown) => {
          if (!this.#stop.signal.aborted) this.#options.log.error({ event: 'fleet-work-failed', err: error });
        },
      )
      .finally(() => this.#work.delete(owned));
    this.#work.add(owned);
  }
}
