import type { JobClass } from '../../../shared/job.ts';
import type { Resident } from '../../../agent/gpu/vram-planner.ts';
import type { ChoiceView, Grant, LineView, SlotView } from '../../../agent/job/choice.ts';
import { choose } from '../../../agent/job/slot-scheduler.ts';
import type { TurnMemory } from '../../../agent/job/turn-memory.ts';
import { EMPTY_MEMORY, rememberRefusal, rememberRun, rememberTurn } from '../../../agent/job/turn-memory.ts';

export type VirtualModel = {
  model: string;
  needMiB: number;
  swapMs: number;
  /** GPUs that one server spans: 1 where not said. */
  gpuCount?: number;
  /** What it keeps on its GPUs when it is offloaded; it cannot be where this is not said. */
  offloadedMiB?: number;
};
type Work = { tokenId: string; sessionId: string; class: JobClass; runMs: number; endMs: number };
type VirtualSlot = VirtualModel & {
  slotId: string;
  gpus: string[];
  state: 'ready' | 'loading' | 'offloaded' | 'released';
  phase: SlotView['phase'];
  work: Work | undefined;
  brought: boolean;
};
export type VirtualLine = {
  sessionId: string;
  tokenId: string;
  model: string;
  class: JobClass;
  jobs: number;
  runMs: number;
  sinceMs?: number;
  isDeclined?: boolean;
  inFlight?: number;
};
export type Served = { tokenId: string; sessionId: string; class: JobClass; model: string; atMs: number };

/**
 * A host in virtual time: the real choice and the real planner, with servers that load in `swapMs`, free their memory at
 * once, and bridges that take every grant at once. Throws when two jobs would share a GPU or memory would be over-committed.
 */
export class VirtualHost {
  readonly gpuMiB: number;
  readonly gpus: readonly string[];
  readonly slots: VirtualSlot[];
  lines: VirtualLine[] = [];
  memory: TurnMemory = EMPTY_MEMORY;
  nowMs = 0;
  swaps = 0;
  readonly served: Served[] = [];
  /** Grants that are refused instead of taken. */
  refuses: (grant: Grant) => boolean = () => false;

  constructor(o: { gpus: number; gpuMiB: number; models: VirtualModel[] }) {
    this.gpuMiB = o.gpuMiB;
    this.gpus = Array.from({ length: o.gpus }, (_, at) => `gpu-${at}`);
    this.slots = o.models.map((model) => ({
      ...model,
      slotId: model.model,
      gpus: [],
      state: 'released',
      phase: 'idle',
      work: undefined,
      brought: false,
    }));
  }

  /** It has been there for long. */
  place(model: string, gpus: readonly string[]): void {
    Object.assign(this.#slot(model), { state: 'ready', gpus: [...gpus] });
  }

  /** Runs until nothing is left to do, or until the time is over. */
  run(untilMs = Infinity): void {
    for (let steps = 0; steps < 100_000; steps += 1) {
      const againInMs = this.#tick();
      const ends = this.slots.flatMap((slot) => slot.work?.endMs ?? []);
      const nextMs = Math.min(...ends, againInMs === undefined ? Infinity : this.nowMs + againInMs);
      if (nextMs === Infinity || nextMs > untilMs) return;
      this.nowMs = nextMs;
      for (const slot of this.slots) this.#advance(slot);
    }
    throw new Error('the host never comes to rest');
  }

  view(): ChoiceView {
    return {
      nowMs: this.nowMs,
      slots: this.slots.map((slot) => ({
        slotId: slot.slotId,
        model: slot.model,
        phase: slot.phase,
        cannot: false,
        isReady: slot.state === 'ready',
        isMoving: slot.state === 'loading',
        isHeldAway: false,
        gpus: slot.gpus,
        swapMs: slot.swapMs,
        work: slot.work ? [{ ...slot.work, expectedMs: slot.work.runMs }] : [],
        endsInMs: null,
        hasNext: false,
      })),
      lines: this.lines.map((line) => this.#line(line)),
      vram: {
        gpus: this.gpus.map((uuid) => ({
          uuid,
          totalMiB: this.gpuMiB,
          freeMiB: this.#free(uuid),
          reserveMiB: 0,
          usable: true,
          isOut: false,
        })),
        residents: this.slots.filter((slot) => slot.gpus.length > 0).map((slot) => resident(slot)),
        hostRamFreeMiB: Infinity,
      },
      leadMs: 0,
      turnMs: 30_000,
    };
  }

  #tick(): number | undefined {
    const choice = choose(this.view(), this.memory);
    this.memory = choice.memory;
    for (const grant of choice.grants) {
      if (this.refuses(grant)) this.#refuse(grant);
      else this.#take(grant);
    }
    return choice.againInMs;
  }

  #refuse(grant: Grant): void {
    const line = this.lines.find((each) => lineId(each) === grant.line.lineId);
    if (line) line.isDeclined = true;
    if (grant.isDue) this.memory = rememberRefusal(this.memory, grant.line.model, this.nowMs + 5_000);
  }

  #take(grant: Grant): void {
    const slot = this.#slot(grant.slotId);
    const line = this.lines.find((each) => lineId(each) === grant.line.lineId);
    if (line === undefined) throw new Error('a grant of nothing');
    const onSameGpu = this.slots.filter((each) => each !== slot && each.gpus.some((gpu) => grant.gpus.includes(gpu)));
    if (slot.phase !== 'idle' || onSameGpu.some((each) => each.phase !== 'idle'))
      throw new Error('two jobs on one GPU');
    for (const victim of grant.evict) {
      const other = this.#slot(victim.slotId);
      if (other.phase !== 'idle') throw new Error('a victim that is busy');
      Object.assign(other, victim.by === 'offload' ? { state: 'offloaded' } : { state: 'released', gpus: [] });
    }
    const isSwap = slot.state !== 'ready';
    if (isSwap) this.swaps += 1;
    Object.assign(slot, {
      phase: 'accepted',
      state: isSwap ? 'loading' : 'ready',
      gpus: [...grant.gpus],
      brought: isSwap,
    });
    for (const gpu of this.gpus) if (this.#free(gpu) < 0) throw new Error('over-committed');
    line.jobs -= 1;
    line.sinceMs = this.nowMs;
    this.served.push({
      tokenId: line.tokenId,
      sessionId: line.sessionId,
      class: line.class,
      model: line.model,
      atMs: this.nowMs,
    });
    const startMs = this.nowMs + (isSwap ? slot.swapMs : 0);
    slot.work = {
      tokenId: line.tokenId,
      sessionId: line.sessionId,
      class: line.class,
      runMs: line.runMs,
      endMs: startMs,
    };
    if (!isSwap) this.#advance(slot);
  }

  #advance(slot: VirtualSlot): void {
    const { work } = slot;
    if (work === undefined || work.endMs > this.nowMs) return;
    if (slot.phase === 'accepted') {
      Object.assign(slot, { phase: 'running', state: 'ready' });
      if (slot.brought) this.memory = rememberTurn(this.memory, slot.slotId, this.nowMs);
      work.endMs = this.nowMs + work.runMs;
      return;
    }
    this.memory = rememberRun(this.memory, work);
    Object.assign(slot, { phase: 'idle', work: undefined });
  }

  #free(uuid: string): number {
    const here = this.slots.filter((slot) => slot.gpus.includes(uuid));
    return here.reduce((free, slot) => free - held(slot) / slot.gpus.length, this.gpuMiB);
  }

  #slot(slotId: string): VirtualSlot {
    const found = this.slots.find((each) => each.slotId === slotId);
    if (found === undefined) throw new Error(`no slot ${slotId}`);
    return found;
  }

  #line(line: VirtualLine): LineView {
    return {
      lineId: lineId(line),
      sessionId: line.sessionId,
      tokenId: line.tokenId,
      bridgeId: line.sessionId,
      model: line.model,
      class: line.class,
      count: line.jobs,
      workMs: line.jobs * line.runMs,
      inFlight: line.inFlight ?? 0,
      rank: 0,
      waitingMs: this.nowMs - (line.sinceMs ?? 0),
      isDeclined: line.isDeclined ?? false,
      wants: this.slots
        .filter((slot) => slot.model === line.model)
        .map((slot) => ({
          slotId: slot.slotId,
          needMiB: slot.needMiB - (slot.gpus.length > 0 ? held(slot) : 0),
          gpuCount: slot.gpuCount ?? 1,
          ...(slot.gpus.length > 0 && { onGpus: slot.gpus }),
        })),
    };
  }
}

function lineId(line: VirtualLine): string {
  return `${line.sessionId} ${line.class} ${line.model}`;
}

function held({ state, needMiB, offloadedMiB = 0 }: VirtualSlot): number {
  return state === 'offloaded' ? offloadedMiB : needMiB;
}

function resident(slot: VirtualSlot): Resident {
  return {
    slotId: slot.slotId,
    gpus: slot.gpus,
    heldMiB: held(slot),
    state: slot.state,
    inFlight: slot.phase === 'idle' || slot.phase === 'granted' ? 0 : 1,
    isPinned: false,
    isOffered: true,
    idleMs: 0,
    reloadMs: slot.swapMs,
    wakeMs: slot.swapMs,
    canOffload: slot.offloadedMiB !== undefined,
    offloadedMiB: slot.offloadedMiB ?? 0,
  };
}
