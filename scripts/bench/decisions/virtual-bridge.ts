import { answerGrant } from '../../../bridge/fleet/batch-plan.ts';
import type { PlanJob, PlanRules } from '../../../bridge/fleet/batch-plan.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import type { Holding } from '../../../bridge/fleet/job-record.ts';
import { ranksOf } from '../../../bridge/fleet/offers.ts';
import { planSlots } from '../../../bridge/fleet/plan-slots.ts';
import type { OwnWaiting } from '../../../bridge/fleet/plan-slots.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { estimateMs } from '../../../shared/service-time.ts';
import type { VirtualClock } from './virtual-clock.ts';
import { MODEL } from './virtual-host-view.ts';

export type VirtualJob = { id: string; request: GenerateRequest; units: number; workMs: number };
/** What a bridge offers one host; without jobs it takes its offer back. */
export type VirtualOffer = { count: number; workMs: number; inFlight: number; rank: number };
export type VirtualGrant = { hostAt: number; startsInMs: number; grantId: number };

type BridgeOptions = {
  clock: VirtualClock;
  jobs: readonly VirtualJob[];
  /** What it knows of the hosts at first. */
  views: readonly HostView[];
  /** Each arrives a while later. */
  offer: (hostAt: number, offer: VirtualOffer) => void;
  take: (hostAt: number, job: VirtualJob) => void;
  decline: (hostAt: number, grantId: number) => void;
};

const RULES: PlanRules = { only: undefined, avoid: [], spread: undefined };
/** As in bridge/fleet/work-desk.ts. */
const OFFER_SOON_MS = 10;
const OFFER_COUNTS_MS = 200;
const OFFER_EVERY_MS = 2_000;
const LOOK_EVERY_MS = 250;

/** A bridge with one batch for one model, with the product's own plan. */
export class VirtualBridge {
  readonly #options: BridgeOptions;
  readonly #views: HostView[];
  readonly #seenAtMs: number[];
  readonly #offers: { sentMs: number; hasDeclined: boolean; text: string }[];
  readonly #declinedSinceMs = new Map<string, number>();
  #waiting: readonly VirtualJob[];
  #holdings: (Holding & { id: string })[] = [];
  #inFlight = 0;
  #isFlushDue = false;
  #declines = 0;

  constructor(options: BridgeOptions) {
    this.#options = options;
    this.#waiting = options.jobs;
    this.#views = [...options.views];
    this.#seenAtMs = options.views.map(() => 0);
    this.#offers = options.views.map(() => ({ sentMs: -Infinity, hasDeclined: false, text: '' }));
  }

  get declines(): number {
    return this.#declines;
  }

  start(atMs: number): void {
    this.#options.clock.at(atMs, () => this.#flush());
    this.#look(atMs);
  }

  onStatus(hostAt: number, view: HostView): void {
    this.#views[hostAt] = view;
    this.#seenAtMs[hostAt] = this.#options.clock.nowMs;
  }

  onDone(job: VirtualJob): void {
    this.#inFlight -= 1;
    this.#holdings = this.#holdings.filter(({ id }) => id !== job.id);
    this.#changed();
  }

  onGrant({ hostAt, startsInMs, grantId }: VirtualGrant): void {
    const { nowMs } = this.#options.clock;
    const host = `h${hostAt}`;
    const hosts = this.#views.map((view, at) => ({ ...view, statusAgeMs: nowMs - (this.#seenAtMs[at] ?? 0) }));
    const granted = { host, slotId: 's', startsInMs };
    const slots = planSlots(
      { model: MODEL, class: 'batch' },
      { hosts, holdings: this.#holdings, nowMs, granted, waiting: waitingOf(this.#waiting) },
    );
    const jobs: PlanJob[] = this.#waiting.map(({ id, units }) => ({
      ...{ jobId: id, class: 'batch', units, rules: RULES },
      declinedForMs: nowMs - (this.#declinedSinceMs.get(id) ?? nowMs),
    }));
    const answer = answerGrant({ ...granted, class: 'batch' }, jobs, slots);
    if (answer.kind === 'decline') return this.#decline(hostAt, grantId);
    const job = this.#waiting.find(({ id }) => id === answer.jobId);
    if (job === undefined) throw new Error('the plan chose an unknown job');
    this.#waiting = this.#waiting.filter((each) => each !== job);
    this.#inFlight += 1;
    this.#declinedSinceMs.delete(job.id);
    this.#holdings.push({ id: job.id, host, slotId: 's', endsAtMs: nowMs + answer.endsInMs });
    this.#changed();
    this.#options.take(hostAt, job);
  }

  #decline(hostAt: number, grantId: number): void {
    this.#declines += 1;
    for (const { id } of this.#waiting) {
      if (!this.#declinedSinceMs.has(id)) this.#declinedSinceMs.set(id, this.#options.clock.nowMs);
    }
    const offer = this.#offers[hostAt];
    if (offer !== undefined) offer.hasDeclined = true;
    this.#options.decline(hostAt, grantId);
  }

  #look(atMs: number): void {
    const { clock } = this.#options;
    clock.at(atMs + LOOK_EVERY_MS, () => {
      if (this.#waiting.length === 0) return;
      this.#flush();
      this.#look(clock.nowMs);
    });
  }

  #changed(): void {
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    this.#options.clock.after(OFFER_SOON_MS, () => {
      this.#isFlushDue = false;
      this.#flush(true);
    });
  }

  #flush(isAfterChange = false): void {
    const { clock, offer } = this.#options;
    const ranks = ranksOf(MODEL, this.#views);
    const count = this.#waiting.length;
    const text = `${count} ${this.#inFlight}`;
    for (const [at, view] of this.#views.entries()) {
      const last = this.#offers[at];
      const service = view.snapshot?.models[0]?.service;
      if (last === undefined || service === undefined) continue;
      const ageMs = clock.nowMs - last.sentMs;
      const isDue =
        last.text.startsWith('0 ') !== text.startsWith('0 ') ||
        last.text === '' ||
        (count > 0 && (ageMs >= OFFER_EVERY_MS || (isAfterChange && last.hasDeclined))) ||
        (count > 0 && ageMs >= OFFER_COUNTS_MS && last.text !== text);
      if (!isDue) continue;
      this.#offers[at] = { sentMs: clock.nowMs, hasDeclined: false, text };
      const workMs = this.#waiting.reduce((sum, { request }) => sum + estimateMs(service, request), 0);
      offer(at, { count, workMs, inFlight: this.#inFlight, rank: ranks.get(view.name) ?? 0 });
    }
  }
}

function waitingOf(jobs: readonly VirtualJob[]): OwnWaiting {
  return { count: jobs.length, units: jobs.reduce((sum, { units }) => sum + units, 0) };
}
