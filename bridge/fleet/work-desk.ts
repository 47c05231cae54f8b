import { performance } from 'node:perf_hooks';
import { pause } from '../../shared/abort.ts';
import { toAppError } from '../../shared/errors.ts';
import type { AppError } from '../../shared/errors.ts';
import type { JobClass } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { Notification, OfferLine } from '../../shared/protocol.ts';
import type { AgentLink } from './agent-link.ts';
import type { PlannedJob } from './batch-book.ts';
import { answerGrant, mayGo, planOrder } from './batch-plan.ts';
import type { PlanJob } from './batch-plan.ts';
import type { Batch } from './batch.ts';
import { serviceOn } from './host-forecast.ts';
import type { HostView } from './host-view.ts';
import { remainingMs } from './job-record.ts';
import type { Holding } from './job-record.ts';
import { isOtherOffer, offerLines, ranksOf } from './offers.ts';
import { expectedFinishes } from './placement.ts';
import type { OwnWork } from './placement.ts';
import { planSlots } from './plan-slots.ts';
import type { OwnWaiting } from './plan-slots.ts';
import { routingText } from './routing.ts';

export type Grant = Extract<Notification, { method: 'slot.grant' }>['params'];

type DeskOptions = {
  batches: ReadonlyMap<string, Batch>;
  links: ReadonlyMap<string, AgentLink>;
  hosts: () => readonly HostView[];
  offerEveryMs: number;
  log: Log;
  signal: AbortSignal;
};

type SentOffer = { lines: OfferLine[]; sentAtMs: number; hasDeclined: boolean };
type FlushAfter = 'a while' | 'a change' | 'a new batch';
type HoldOff = { untilMs: number; count: number; error: AppError };

/** Changes this close go into one offer; mere counts wait a little longer. */
const OFFER_SOON_MS = 10;
const OFFER_COUNTS_MS = 200;
const HOLD_OFF = { firstMs: 1_000, maxMs: 30_000, forgottenAfterMs: 60_000 };

/** Where work is offered and grants are answered, for all batches of this process together. */
export class WorkDesk {
  readonly #options: DeskOptions;
  readonly #offers = new Map<string, SentOffer>();
  readonly #holdOffs = new Map<string, HoldOff>();
  readonly #work = new Set<Promise<void>>();
  #isFlushDue = false;

  constructor(options: DeskOptions) {
    this.#options = options;
  }

  /** Something that offers depend on changed: they are sent anew in a moment. */
  changed(): void {
    const { signal } = this.#options;
    if (this.#isFlushDue || signal.aborted) return;
    this.#isFlushDue = true;
    this.#own(
      pause(OFFER_SOON_MS, signal).then(() => {
        this.#isFlushDue = false;
        this.flush('a change');
      }),
    );
  }

  /** The session with this host is new or over: it knows of no offer. */
  forget(host: string): void {
    this.#offers.delete(host);
  }

  /** Decides at once, without awaiting: a slot that waits for an answer is lost time. */
  onGrant(host: string, grant: Grant): void {
    const { batches, signal } = this.#options;
    const hosts = this.#options.hosts();
    const granted = { host, slotId: grant.slotId, startsInMs: grant.startsInMs };
    const jobs = planOrder(
      [...batches.values()].map((batch) => ({ class: batch.header.class, jobs: batch.planJobs(grant.model) })),
    );
    const waiting = waitingOf(jobs, grant.class);
    const slots = planSlots(grant, { hosts, holdings: this.holdings(), nowMs: performance.now(), granted, waiting });
    const answer = signal.aborted
      ? ({ kind: 'decline', why: 'this bridge ends' } as const)
      : answerGrant({ ...granted, class: grant.class }, jobs, slots);
    if (answer.kind === 'decline') return this.#decline(host, { grant, why: answer.why });
    const { jobId, endsInMs } = answer;
    const batch = this.#batchOf(jobId);
    const request = batch?.requestOf(jobId);
    if (batch === undefined || request === undefined) throw new Error(`the plan chose the unknown job ${jobId}`);
    const placement = expectedFinishes(request, { hosts, own: this.ownWork(), class: grant.class });
    const routing = routingText(placement, { host, endsInMs, isAskedFor: batch.header.host !== null });
    batch.take(jobId, { host, grantId: grant.grantId, slotId: grant.slotId, endsInMs, routing });
  }

  /**
   * Sends each host its offer when it differs, when a line of it was declined and things changed, and every 2 s. Counts that
   * shrink as jobs are taken can wait a little; those of a new batch cannot: slots may stand idle for them.
   */
  flush(after: FlushAfter = 'a while'): void {
    const { links, signal } = this.#options;
    if (signal.aborted) return;
    const batches = [...this.#options.batches.values()];
    const inFlight = batches.flatMap((batch) =>
      [...batch.inFlight].map(({ request }) => ({ class: batch.header.class, model: request.model })),
    );
    const groups = batches.flatMap((batch) => batch.offerGroups());
    // Most of the time there is no work, and nobody who was told of any.
    if (groups.length === 0 && [...this.#offers.values()].every(({ lines }) => lines.length === 0)) return;
    const hosts = this.#options.hosts();
    const models = new Set(groups.map(({ model }) => model));
    const ranks = new Map([...models].map((model) => [model, ranksOf(model, hosts)]));
    for (const view of hosts) {
      const link = links.get(view.name);
      if (link?.isUp !== true) continue;
      const mine = this.heldOff(view.name) ? [] : groups.filter(({ rules }) => mayGo(rules, view.name));
      const serviceOf = (model: string) => serviceOn(view, { model, hosts });
      const rankOf = (model: string) => ranks.get(model)?.get(view.name) ?? 0;
      const lines = offerLines({ groups: mine, inFlight, serviceOf, rankOf });
      if (!this.#isDue(view.name, { lines, after })) continue;
      this.#offers.set(view.name, { lines, sentAtMs: performance.now(), hasDeclined: false });
      this.#own(this.#send(link, lines));
    }
  }

  /** The host refused something for a reason that may pass: it gets no offers for a while. */
  holdOff(host: string, error: AppError): void {
    const nowMs = performance.now();
    const last = this.#holdOffs.get(host);
    const isRecent = last !== undefined && nowMs - last.untilMs < HOLD_OFF.forgottenAfterMs;
    const count = isRecent ? last.count + 1 : 1;
    const ms = Math.min(HOLD_OFF.maxMs, HOLD_OFF.firstMs * 2 ** (count - 1));
    this.#holdOffs.set(host, { untilMs: nowMs + ms, count, error });
    this.#options.log.warn({ event: 'host-held-off', host, ms, code: error.code, why: error.message });
  }

  heldOff(host: string): AppError | undefined {
    const holdOff = this.#holdOffs.get(host);
    return holdOff !== undefined && holdOff.untilMs > performance.now() ? holdOff.error : undefined;
  }

  /** This bridge's jobs on slots. */
  holdings(): Holding[] {
    return [...this.#options.batches.values()].flatMap((batch) =>
      batch.isEnded ? [] : [...batch.inFlight].flatMap(({ holding }) => holding ?? []),
    );
  }

  /** Jobs that wait in batches which the plan puts before this one: interactive ones first, then as they were started. */
  waitingBefore(batchId: string): PlannedJob[] {
    const batches = [...this.#options.batches.values()];
    const at = batches.findIndex(({ id }) => id === batchId);
    const jobClass = batches[at]?.header.class;
    return batches.flatMap((batch, index) => {
      const isFirst = batch.header.class === jobClass ? index < at : batch.header.class === 'interactive';
      return isFirst ? batch.planned : [];
    });
  }

  /** As `waitingBefore`, for a batch of this class that would begin now. */
  waitingBeforeNew(jobClass: JobClass): PlannedJob[] {
    return [...this.#options.batches.values()].flatMap((batch) =>
      jobClass === 'batch' || batch.header.class === 'interactive' ? batch.planned : [],
    );
  }

  /** This bridge's jobs on slots that the hosts' status does not show yet, as work. */
  ownWork(): OwnWork {
    const nowMs = performance.now();
    const own = new Map<string, number>();
    const views = this.#options.hosts();
    for (const holding of this.holdings()) {
      const models = views.find(({ name }) => name === holding.host)?.snapshot?.models ?? [];
      const slot = models.flatMap(({ slots }) => slots).find(({ slotId }) => slotId === holding.slotId);
      if (slot?.phase !== 'idle' && slot?.phase !== 'granted') continue;
      own.set(holding.host, Math.max(own.get(holding.host) ?? 0, remainingMs(holding, nowMs)));
    }
    return own;
  }

  /** Takes all offers back, as far as the hosts can be reached; the end of a link does the same. */
  async withdraw(signal: AbortSignal): Promise<void> {
    const { links } = this.#options;
    const offered = [...links.values()].filter(
      (link) => link.isUp && (this.#offers.get(link.name)?.lines.length ?? 0) > 0,
    );
    await Promise.all(
      offered.map((link) => link.request('job.offer', { lines: [] }, signal).catch(() => undefined)), // as promised above
    );
  }

  /** Until nothing of it runs. */
  async idle(): Promise<void> {
    while (this.#work.size > 0) await Promise.all(this.#work);
  }

  #isDue(host: string, { lines, after }: { lines: OfferLine[]; after: FlushAfter }): boolean {
    const last = this.#offers.get(host) ?? { lines: [], sentAtMs: 0, hasDeclined: false };
    if (isOtherOffer(lines, last.lines)) return true;
    if (lines.length === 0) return false;
    const ageMs = performance.now() - last.sentAtMs;
    if (ageMs >= this.#options.offerEveryMs || (after !== 'a while' && last.hasDeclined)) return true;
    return (
      (after === 'a new batch' || ageMs >= OFFER_COUNTS_MS) && JSON.stringify(lines) !== JSON.stringify(last.lines)
    );
  }

  #decline(host: string, { grant, why }: { grant: Grant; why: string }): void {
    const { log, links, signal } = this.#options;
    log.debug({ event: 'grant-declined', host, model: grant.model, why });
    for (const batch of this.#options.batches.values()) {
      if (batch.header.class === grant.class) batch.markDeclined(grant.model, host);
    }
    const offer = this.#offers.get(host);
    if (offer !== undefined) offer.hasDeclined = true;
    const declined = links.get(host)?.request('slot.decline', { grantId: grant.grantId }, signal);
    if (declined !== undefined) this.#own(declined.catch(() => undefined)); // then the grant expires by itself
  }

  async #send(link: AgentLink, lines: OfferLine[]): Promise<void> {
    try {
      await link.request('job.offer', { lines }, this.#options.signal);
    } catch (error) {
      const failure = toAppError(error);
      // Without a link there is nothing to hold off: the next hello asks for a new offer.
      if (!this.#options.signal.aborted && failure.code !== 'AGENT_UNREACHABLE') this.holdOff(link.name, failure);
    }
  }

  #batchOf(jobId: string): Batch | undefined {
    return [...this.#options.batches.values()].find((batch) => batch.has(jobId));
  }

  #own(work: Promise<unknown>): void {
    const owned: Promise<void> = work
      .then(
        () => undefined,
        (error: unknown) => this.#options.log.error({ event: 'desk-work-failed', err: error }),
      )
      .finally(() => this.#work.delete(owned));
    this.#work.add(owned);
  }
}

function waitingOf(jobs: readonly PlanJob[], jobClass: JobClass): OwnWaiting {
  const waiting = { count: 0, units: 0 };
  for (const job of jobs) {
    if (job.class !== jobClass) continue;
    waiting.count += 1;
    waiting.units += job.units;
  }
  return waiting;
}
