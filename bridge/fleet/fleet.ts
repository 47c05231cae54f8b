import { appendFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, Method, Notification, Params, Result } from '../../shared/protocol.ts';
import { AgentLink } from './agent-link.ts';
import { BatchIndex } from './batch-index.ts';
import type { BatchOrder } from './batch-order.ts';
import { countEnds, jobView } from './batch-view.ts';
import type { BatchView } from './batch-view.ts';
import { Batch } from './batch.ts';
import type { FleetSide } from './batch-book.ts';
import type { Refusal } from './host-forecast.ts';
import type { BridgeTimes, HostConfig, HostView } from './host-view.ts';
import { isOver } from './job-state.ts';
import type { ManifestState } from './manifest-lines.ts';
import { expectedFinishes, refusalText } from './placement.ts';
import type { OwnWork } from './placement.ts';
import { WorkDesk } from './work-desk.ts';

type FleetOptions = {
  hosts: HostConfig[];
  bridgeId: string;
  clientName: () => string;
  stateDir: string;
  times: BridgeTimes;
  log: Log;
};

const TICK_MS = 250;
const IDLE_TICK_MS = 1_000;
const RESCAN_MS = 15_000;
const DETACH_MS = 1_000;
/** Ended batches that stay in memory. */
const ENDED_KEPT = 50;

/**
 * All configured hosts and all batches of this process: keeps the links, offers what waits, answers grants, and knows
 * every batch in the state directory, also those of other processes.
 */
export class Fleet implements AsyncDisposable {
  readonly #options: FleetOptions;
  readonly #root: string;
  readonly #stop = new AbortController();
  readonly #links = new Map<string, AgentLink>();
  readonly #batches = new Map<string, Batch>();
  readonly #index: BatchIndex;
  readonly #side: FleetSide;
  readonly #desk: WorkDesk;
  readonly #changes = new Set<() => void>();
  readonly #work = new Set<Promise<void>>();
  #running: Promise<void> | undefined;
  #isScanning = false;
  #scannedAtMs = Number.NEGATIVE_INFINITY;
  #detaching: Promise<void> | undefined;

  constructor(options: FleetOptions) {
    this.#options = options;
    this.#root = join(options.stateDir, 'batches');
    this.#index = new BatchIndex(this.#root);
    this.#desk = new WorkDesk({
      batches: this.#batches,
      links: this.#links,
      hosts: () => this.hosts(),
      offerEveryMs: options.times.offerEveryMs,
      log: options.log,
      signal: this.#stop.signal,
    });
    this.#side = {
      times: options.times,
      log: options.log,
      hosts: () => this.hosts(),
      link: (host) => this.#links.get(host),
      holdings: () => this.#desk.holdings(),
      changed: () => this.#changed(),
      holdOff: (host, error) => this.#desk.holdOff(host, error),
      heldOff: (host) => this.#desk.heldOff(host),
    };
  }

  /** Opens the links and resumes unfinished batches whose lock is free. May be called at every tool call. */
  open(): void {
    if (this.#stop.signal.aborted) throw new Error('this fleet is detached');
    for (const host of this.#options.hosts) {
      if (this.#links.has(host.name)) continue;
      const { bridgeId, clientName, times, log } = this.#options;
      const listener = {
        onChange: () => this.#onLinkChange(),
        onHello: (jobs: AgentJob[]) => this.#onHello(host.name, jobs),
        onNotification: (notification: Notification) => this.#onNotification(host.name, notification),
        onDown: () => this.#onDown(host.name),
      };
      this.#links.set(host.name, new AgentLink({ host, bridgeId, clientName, times, log, listener }));
    }
    this.#running ??= this.#run(this.#stop.signal);
    this.#rescan(5_000);
  }

  /** Until each link is up with a snapshot or has failed once, or the time is over. */
  async settled({ signal, withinMs }: { signal: AbortSignal; withinMs: number }): Promise<void> {
    // Not AbortSignal.any with a time-out: Node 20 forgets such a time-out at the next garbage collection.
    using late = new Deadline({ ms: withinMs, signal });
    while (![...this.#links.values()].every((link) => link.hasSettled)) {
      try {
        await untilAborted(untilAborted(this.#nextChange(), late.signal), this.#stop.signal);
      } catch (error) {
        if (late.isExpired) return;
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

  /** A new batch, durable when this resolves. Refused when it can never run on the hosts as they are. */
  async start(order: BatchOrder): Promise<Batch> {
    this.open();
    this.#refuseHopeless(order);
    const batch = await Batch.create(order, { root: this.#root, side: this.#side });
    this.#batches.set(batch.id, batch);
    this.#changed();
    return batch;
  }

  /** The batch with this id, or with the job of this id, while this process works on it. */
  batch(id: string): Batch | undefined {
    return this.#batches.get(id) ?? [...this.#batches.values()].find((batch) => batch.has(id));
  }

  /** As `batch`, and also what other processes have and had. */
  find(id: string): BatchView | undefined {
    const own = this.batch(id);
    if (own !== undefined) return own.view();
    const found = this.#index.find(id);
    return found && viewOf(found.state);
  }

  /** Newest first. */
  list(): BatchView[] {
    const others = [...this.#index.batches()].filter(([id]) => !this.#batches.has(id));
    const views = [
      ...[...this.#batches.values()].map((batch) => batch.view()),
      ...others.flatMap(([, state]) => viewOf(state) ?? []),
    ];
    return views.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  }

  /** Ends a batch or one job of it. Another process that holds it is asked by a file, and looks every second. */
  async cancel(id: string): Promise<BatchView> {
    const own = this.batch(id);
    if (own !== undefined) return await own.cancel(own.id === id ? undefined : [id]);
    const found = this.#index.find(id);
    if (found === undefined)
      throw new AppError('JOB_NOT_FOUND', `No job or batch has the id ${id}. list_jobs shows all.`);
    const { batchId, state } = found;
    if (state.ended === undefined) {
      const directory = join(this.#root, batchId);
      if (batchId === id) await writeFile(join(directory, 'cancel'), '');
      else await appendFile(join(directory, 'cancel-jobs'), `${id}\n`);
      this.#rescan(0);
    }
    const view = this.find(id);
    if (view === undefined) throw new AppError('JOB_NOT_FOUND', `Batch ${batchId} is gone.`);
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
    await Promise.all([...this.#batches.values()].map((batch) => batch[Symbol.asyncDispose]()));
    await Promise.all([...this.#links.values()].map((link) => link[Symbol.asyncDispose]()));
    await this.#desk.idle();
    while (this.#work.size > 0) await Promise.all(this.#work);
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const active = [...this.#batches.values()].filter((batch) => !batch.isEnded);
      await pause(active.length > 0 ? Math.min(TICK_MS, this.#options.times.offerEveryMs) : IDLE_TICK_MS, signal);
      if (signal.aborted) return;
      for (const batch of this.#batches.values()) {
        if (batch.isEnded || batch.isLost) this.#retire(batch);
        else batch.tick();
      }
      this.#desk.flush();
      this.#rescan(RESCAN_MS);
    }
  }

  /** What a batch that is over holds is given back; the oldest of them are from then on read from their manifests. */
  #retire(batch: Batch): void {
    if (!batch.isClosed) this.#own(batch.close());
    const ended = [...this.#batches.values()].filter(({ isEnded, isClosed }) => isEnded && isClosed);
    if (batch.isLost || (ended.length > ENDED_KEPT && ended[0] === batch)) this.#batches.delete(batch.id);
  }

  #onLinkChange(): void {
    for (const change of [...this.#changes]) change();
  }

  #onHello(host: string, jobs: AgentJob[]): void {
    this.#desk.forget(host);
    for (const batch of this.#batches.values()) batch.onHello(host, jobs);
    const strangers = jobs.filter(({ jobId }) => this.batch(jobId) === undefined);
    if (strangers.length > 0) this.#own(this.#settleStrangers(host, strangers));
    this.#changed();
  }

  /** Jobs of batches that ended, whose acknowledgement did not arrive. Those that others work on are left alone. */
  async #settleStrangers(host: string, jobs: readonly AgentJob[]): Promise<void> {
    const link = this.#links.get(host);
    for (const { jobId, attempt, state } of jobs) {
      const found = this.#index.find(jobId)?.state;
      const job = found?.job(jobId);
      if (link === undefined || found?.ended === undefined || job === undefined || !isOver(job.state)) continue;
      if (state === 'accepted' || state === 'running') await link.request('job.cancel', { jobId }, this.#stop.signal);
      else await link.request('job.ack', { jobId, attempt }, this.#stop.signal);
    }
  }

  #onDown(host: string): void {
    this.#desk.forget(host);
    for (const batch of this.#batches.values()) batch.onDown(host);
    this.#changed();
  }

  #onNotification(host: string, notification: Notification): void {
    switch (notification.method) {
      case 'slot.grant':
        return this.#desk.onGrant(host, notification.params);
      case 'job.progress': {
        const { jobId, attempt, state } = notification.params;
        const batch = this.batch(jobId);
        batch?.onAgentJob(host, { jobId, attempt, state });
        batch?.onProgress(host, notification.params);
        return;
      }
      case 'job.done':
        return this.batch(notification.params.jobId)?.onAgentJob(host, { ...notification.params, state: 'done' });
      case 'job.failed':
        return this.batch(notification.params.jobId)?.onAgentJob(host, { ...notification.params, state: 'failed' });
      case 'job.cancelled':
        return this.batch(notification.params.jobId)?.onAgentJob(host, { ...notification.params, state: 'cancelled' });
      case 'slot.revoke': // a late take is answered with GRANT_EXPIRED, which says the same
      case 'snapshot':
      case 'delta':
        return;
    }
  }

  #changed(): void {
    this.#onLinkChange();
    this.#desk.changed();
  }

  /** Takes up batches nobody works on, at most every `everyMs`. */
  #rescan(everyMs: number): void {
    const nowMs = performance.now();
    if (this.#isScanning || nowMs - this.#scannedAtMs < everyMs || this.#stop.signal.aborted) return;
    this.#isScanning = true;
    this.#scannedAtMs = nowMs;
    this.#own(
      this.#resumeAll().finally(() => {
        this.#isScanning = false;
      }),
    );
  }

  async #resumeAll(): Promise<void> {
    for (const [id, state] of this.#index.batches()) {
      if (state.ended !== undefined || this.#batches.has(id) || this.#stop.signal.aborted) continue;
      const holder = { pid: process.pid, client: this.#options.clientName() };
      const batch = await Batch.resume(join(this.#root, id), { side: this.#side, holder });
      if (batch === undefined) continue;
      this.#batches.set(id, batch);
      if (this.#stop.signal.aborted) await batch[Symbol.asyncDispose]();
      else this.#meet(batch);
    }
  }

  /** Hosts that said hello before the batch was resumed are asked again what they have. */
  #meet(batch: Batch): void {
    this.#changed();
    batch.tick();
  }

  #refuseHopeless(order: BatchOrder): void {
    const { hosts } = this.#options;
    if (hosts.length === 0) {
      throw new AppError('NO_HOST', 'No host is configured. Add one with "gantry add", or in bridge.yaml under hosts.');
    }
    if (order.host !== undefined && !hosts.some(({ name }) => name === order.host)) throw this.#unknownHost(order.host);
    const views = this.hosts().filter(({ name }) => order.host === undefined || name === order.host);
    if (!views.every(({ link, snapshot }) => link.kind === 'up' && snapshot !== undefined)) return;
    const requests = new Map(order.jobs.map(({ request }) => [`${request.model} ${request.kind}`, request]));
    for (const request of requests.values()) {
      const { ranked, refused } = expectedFinishes(request, { hosts: views, class: order.class });
      if (ranked.length > 0 || !refused.every(({ isForever }) => isForever)) continue;
      throw hopeless(request.model, { refused, views });
    }
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

function hopeless(
  model: string,
  { refused, views }: { refused: readonly Refusal[]; views: readonly HostView[] },
): AppError {
  const isConfigured = views.some(({ snapshot }) => snapshot?.models.some((one) => one.model === model));
  if (isConfigured) {
    return new AppError('NO_HOST', `${refusalText(model, refused)} Use another model, or a host with a larger GPU.`);
  }
  const known = [...new Set(views.flatMap(({ snapshot }) => snapshot?.models.map((one) => one.model) ?? []))];
  return new AppError(
    'MODEL_UNKNOWN',
    `No host has the model ${model}. Configured models: ${known.length === 0 ? 'none' : known.join(', ')}.`,
  );
}

/** A batch of another process, or of an earlier one, as its manifest tells. */
function viewOf(state: ManifestState): BatchView | undefined {
  const { header, ended, jobs } = state;
  if (header === undefined) return undefined;
  const createdMs = Date.parse(header.createdAt);
  return {
    batchId: header.batchId,
    kind: header.kind,
    state: ended?.state ?? 'running',
    createdAt: header.createdAt,
    jobs: jobs.map((job) => jobView(job, { detail: undefined, stillRunningOn: undefined })),
    ...countEnds(jobs),
    total: jobs.length,
    etaMs: ended === undefined ? null : 0,
    elapsedMs: ended?.elapsedMs ?? Math.max(0, Date.now() - createdMs),
    ...(ended?.quality && { quality: ended.quality }),
    isOurs: false,
  };
}
