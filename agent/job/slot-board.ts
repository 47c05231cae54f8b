import type { SlotPhase, SlotStatus } from '../../shared/host-snapshot.ts';
import type { JobClass, ModelId } from '../../shared/job.ts';
import type { VramView } from '../gpu/vram-planner.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { ActiveJob } from './active-job.ts';
import type { Alarm } from './alarm.ts';
import type { SlotFacts } from '../model/residency.ts';
import type { Servers } from './servers.ts';
import type { SlotView } from './choice.ts';

/** A grant nobody has answered yet. */
export type OpenGrant = {
  readonly kind: 'grant';
  readonly grantId: string;
  readonly sessionId: string;
  readonly tokenId: string;
  readonly lineId: string;
  readonly model: ModelId;
  readonly class: JobClass;
  readonly gpus: readonly string[];
  readonly isDue: boolean;
  readonly isLead: boolean;
  readonly bringsModelIn: boolean;
  readonly grantedMs: number;
  readonly expectedMs: number;
  readonly alarm: Alarm;
};

/** A person's load: it has the slot like a job, but no job. */
export type OpenLoad = { readonly kind: 'load'; readonly gpus: readonly string[]; readonly expectedMs: number };

export type Occupant = OpenGrant | OpenLoad | ActiveJob;

/** What a slot is measured against while nothing is offered for it. */
const USUAL_MEGAPIXELS = 1;

/** What each slot has now: nothing, a grant, a job, and at most one more behind a running job. One writer: the exchange. */
export class SlotBoard {
  readonly #servers: Servers;
  readonly #occupants = new Map<string, readonly Occupant[]>();
  #offered: ReadonlySet<ModelId> = new Set();

  constructor(servers: Servers) {
    this.#servers = servers;
  }

  /** Replicas come to be once the GPUs are known, so the slots are always those of the servers. */
  slotIds(model?: ModelId): string[] {
    return this.#servers.slots.filter((slot) => !model || slot.model.id === model).map((slot) => slot.slotId);
  }

  /** Which models are offered work decides whom an eviction would hurt. */
  set offered(models: ReadonlySet<ModelId>) {
    this.#offered = models;
  }

  get vram(): VramView {
    return this.#servers.vramView(this.#offered);
  }

  enter(slotId: string, occupant: Occupant): void {
    this.#occupants.set(slotId, [...this.#on(slotId), occupant]);
  }

  /** A taken grant becomes its job in the same place. */
  replace(slotId: string, before: Occupant, after: Occupant): void {
    const occupants = this.#on(slotId).map((each) => (each === before ? after : each));
    this.#occupants.set(slotId, occupants);
  }

  leave(slotId: string, occupant: Occupant): void {
    const occupants = this.#on(slotId).filter((each) => each !== occupant);
    this.#occupants.set(slotId, occupants);
  }

  isTaken(slotId: string): boolean {
    return this.#on(slotId).length > 0;
  }

  grants(): { slotId: string; grant: OpenGrant }[] {
    return this.#all().flatMap(({ slotId, occupant }) =>
      occupant.kind === 'grant' ? [{ slotId, grant: occupant }] : [],
    );
  }

  jobs(): ActiveJob[] {
    return this.#all().flatMap(({ occupant }) => (occupant.kind === 'job' ? [occupant] : []));
  }

  /** The job ahead of this one on its slot. */
  ahead(slotId: string, job: ActiveJob): ActiveJob | undefined {
    const occupants = this.#on(slotId);
    const before = occupants[occupants.indexOf(job) - 1];
    return before?.kind === 'job' ? before : undefined;
  }

  /** `reason` is why the exchange itself gives no grants now. */
  view(slotId: string, { reason, isLeaving }: { reason: string | undefined; isLeaving: boolean }): SlotView {
    const occupants = this.#on(slotId);
    const model = this.#model(slotId);
    const facts = this.#servers.slotFacts(slotId);
    const [current] = occupants;
    return {
      slotId,
      model: model.id,
      phase: phaseOf(current),
      cannot: reason !== undefined || isLeaving || facts.download !== undefined || cannotReason(facts) !== undefined,
      isReady: facts.isReady,
      isMoving: facts.state === 'loading' || facts.state === 'offloading' || facts.state === 'releasing',
      isHeldAway: facts.heldAwayMs > 0 && facts.state !== 'ready',
      gpus: [...new Set([...facts.gpus, ...occupants.flatMap((each) => each.gpus)])],
      swapMs: swapMs(model, facts),
      work: occupants.flatMap((each) =>
        each.kind === 'load' ? [] : [{ tokenId: each.tokenId, sessionId: each.sessionId, expectedMs: each.expectedMs }],
      ),
      // A first guess is no ground to grant ahead.
      endsInMs:
        current?.kind === 'job' && current.startedMs !== undefined && facts.service.samples > 0
          ? current.remainingMs()
          : null,
      hasNext: occupants.length > 1,
    };
  }

  status(
    slotId: string,
    o: {
      reason: string | undefined;
      isLeaving: boolean;
      dueModel: ModelId | undefined;
      /** Largest size of each line that is offered for its model, in megapixels. */
      sizes?: readonly number[];
    },
  ): SlotStatus {
    const occupants = this.#on(slotId);
    const facts = this.#servers.slotFacts(slotId);
    const freeInMs = occupants.reduce((sum, each) => sum + occupiedMs(each, facts), 0);
    const isCancelled = occupants[0]?.kind === 'job' && occupants[0].isCancelled;
    const phase = phaseOf(occupants[0]);
    if (phase !== 'idle') return { slotId, phase, freeInMs, isCancelled };
    const cannot = o.reason ?? cannotReason(facts) ?? this.#shortage(slotId, o.sizes ?? []);
    if (cannot !== undefined) return { slotId, phase: 'cannot', freeInMs: 0, isCancelled, reason: cannot };
    if (facts.download !== undefined) {
      const { text, leftMs } = facts.download;
      return { slotId, phase: 'closed', freeInMs: leftMs, isCancelled, reason: text };
    }
    if (o.isLeaving) {
      return { slotId, phase: 'closed', freeInMs: 0, isCancelled, reason: 'A person asked to move this model away.' };
    }
    if (o.dueModel === undefined) return { slotId, phase, freeInMs: 0, isCancelled };
    return { slotId, phase: 'closed', freeInMs: 0, isCancelled, reason: `${o.dueModel} is due on its GPUs.` };
  }

  #on(slotId: string): readonly Occupant[] {
    return this.#occupants.get(slotId) ?? [];
  }

  #model(slotId: string): ConfiguredModel {
    const slot = this.#servers.slots.find((each) => each.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot.model;
  }

  #all(): { slotId: string; occupant: Occupant }[] {
    return [...this.#occupants].flatMap(([slotId, occupants]) => occupants.map((occupant) => ({ slotId, occupant })));
  }

  /** None of the work that is offered fits, not even after every idle and busy model of ours has gone. */
  #shortage(slotId: string, sizes: readonly number[]): string | undefined {
    if (this.vram.gpus.length === 0 && this.#model(slotId).launch.kind === 'owned') {
      return 'nvidia-smi has shown no GPU yet.';
    }
    // The smallest of them says it for all: a larger job never needs less.
    const megapixels = sizes.length === 0 ? USUAL_MEGAPIXELS : Math.min(...sizes);
    return this.#servers.whyNoRoom(slotId, megapixels);
  }
}

/** To ready from where the model is, or, while it is ready, from where eviction would leave it. */
function swapMs(model: ConfiguredModel, facts: SlotFacts): number {
  if (!facts.isReady) return facts.reloadMs;
  return model.offload === 'auto' ? facts.wakeMs : facts.loadMs;
}

function phaseOf(occupant: Occupant | undefined): Exclude<SlotPhase, 'closed' | 'cannot' | 'unknown'> {
  if (occupant === undefined) return 'idle';
  if (occupant.kind === 'grant') return 'granted';
  if (occupant.kind === 'load') return 'accepted';
  return occupant.startedMs === undefined ? 'accepted' : 'running';
}

function cannotReason(facts: SlotFacts): string | undefined {
  if (facts.leaving !== undefined) return facts.leaving;
  if (facts.download?.isFailed === true) return facts.download.text;
  if (facts.state !== 'failed' || facts.retryInMs === 0) return undefined;
  const again = facts.retryInMs === undefined ? '' : ` It is tried again in ${Math.ceil(facts.retryInMs / 1000)} s.`;
  return `${facts.error?.message ?? 'Its server failed.'}${again}`;
}

function occupiedMs(occupant: Occupant, facts: SlotFacts): number {
  if (occupant.kind === 'job') {
    return occupant.startedMs === undefined ? facts.reloadMs + occupant.expectedMs : occupant.remainingMs();
  }
  return facts.reloadMs + occupant.expectedMs;
}
