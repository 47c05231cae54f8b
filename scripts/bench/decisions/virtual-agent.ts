import type { ChoiceView, LineView, SlotView } from '../../../agent/job/choice.ts';
import { choose } from '../../../agent/job/slot-scheduler.ts';
import type { TurnMemory } from '../../../agent/job/turn-memory.ts';
import { EMPTY_MEMORY, rememberRun } from '../../../agent/job/turn-memory.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { estimateMs, learnServiceTime } from '../../../shared/service-time.ts';
import type { ServiceTime } from '../../../shared/service-time.ts';
import type { VirtualJob, VirtualOffer } from './virtual-bridge.ts';
import type { VirtualClock } from './virtual-clock.ts';
import { hostView, MODEL } from './virtual-host-view.ts';

export type VirtualRun = { bridge: number; job: VirtualJob; startMs: number; endMs: number };

type AgentOptions = {
  clock: VirtualClock;
  /** Its place among the hosts. */
  at: number;
  service: ServiceTime;
  tokenOf: (bridge: number) => string;
  /** How long a job really runs here. */
  runMs: (job: VirtualJob) => number;
  /** Each arrives a while later. */
  grant: (bridge: number, grant: { startsInMs: number; grantId: number }) => void;
  done: (run: VirtualRun) => void;
  status: (view: HostView) => void;
};

type Line = VirtualOffer & { left: number; sinceMs: number; isDeclined: boolean };
type Open = { bridge: number; grantId: number; grantedMs: number; expectedMs: number };
type Active = { bridge: number; job: VirtualJob; startMs?: number; expectedMs: number; grantedMs: number };

/** As in agent/rpc/status-feed.ts. */
const STATUS_GAP_MS = 250;
/** What an agent does between a take and the engine's first byte, and between two jobs. */
const START_MS = 1;
const NEXT_MS = 0.3;
const MOST_LEAD_MS = 2_000;

/** A host with one GPU and one model that is ready, with the product's own choice. */
export class VirtualAgent {
  readonly #options: AgentOptions;
  readonly #lines = new Map<number, Line>();
  #service: ServiceTime;
  #memory: TurnMemory = EMPTY_MEMORY;
  #open: Open | undefined;
  #jobs: Active[] = [];
  #leadMs = 0;
  #statusSentMs = -Infinity;
  #isStatusDue = false;
  #alarm = 0;
  #grants = 0;

  constructor(options: AgentOptions) {
    this.#options = options;
    this.#service = options.service;
  }

  get isIdle(): boolean {
    return this.#jobs.length === 0;
  }

  offered(bridge: number, offer: VirtualOffer): void {
    const sinceMs = this.#lines.get(bridge)?.sinceMs ?? this.#options.clock.nowMs;
    if (offer.count === 0) this.#lines.delete(bridge);
    else this.#lines.set(bridge, { ...offer, left: offer.count, sinceMs, isDeclined: false });
    this.#choose();
  }

  declined(bridge: number, grantId: number): void {
    if (this.#open?.grantId !== grantId) return;
    this.#open = undefined;
    const line = this.#lines.get(bridge);
    if (line !== undefined) line.isDeclined = true;
    this.#choose();
  }

  taken(bridge: number, job: VirtualJob): void {
    const { clock } = this.#options;
    const grantedMs = this.#open?.grantedMs ?? clock.nowMs;
    this.#open = undefined;
    this.#jobs.push({ bridge, job, expectedMs: estimateMs(this.#service, job.request), grantedMs });
    if (this.#jobs.length === 1) clock.after(START_MS, () => this.#start(false));
    this.#choose();
  }

  #choose(): void {
    const { clock, grant: send } = this.#options;
    const { grants, memory, againInMs } = choose(this.#view(), this.#memory);
    this.#memory = memory;
    for (const { line: chosen, startsInMs } of grants) {
      const bridge = Number(chosen.sessionId);
      const line = this.#lines.get(bridge);
      if (line !== undefined) Object.assign(line, { left: line.left - 1, sinceMs: clock.nowMs });
      const grantId = (this.#grants += 1);
      const expectedMs = chosen.workMs / Math.max(1, chosen.count);
      this.#open = { bridge, grantId, grantedMs: clock.nowMs, expectedMs };
      send(bridge, { startsInMs, grantId });
    }
    const alarm = (this.#alarm += 1);
    if (againInMs !== undefined) {
      clock.after(Math.max(5, againInMs), () => {
        if (this.#alarm === alarm) this.#choose();
      });
    }
    this.#tellStatus();
  }

  #start(isLead: boolean): void {
    const { clock } = this.#options;
    const [active] = this.#jobs;
    if (active === undefined) throw new Error('nothing to start');
    active.startMs = clock.nowMs;
    if (!isLead) {
      const tookMs = Math.min(MOST_LEAD_MS, clock.nowMs - active.grantedMs);
      this.#leadMs = this.#leadMs === 0 ? tookMs : this.#leadMs * 0.8 + tookMs * 0.2;
    }
    const runMs = this.#options.runMs(active.job);
    clock.after(runMs, () => this.#end(active, runMs));
    this.#choose();
  }

  #end({ bridge, job, startMs = 0 }: Active, runMs: number): void {
    const { clock, tokenOf, done } = this.#options;
    this.#jobs.shift();
    this.#service = learnServiceTime(this.#service, { request: job.request, runMs });
    this.#memory = rememberRun(this.#memory, { tokenId: tokenOf(bridge), sessionId: `${bridge}`, runMs });
    if (this.#jobs.length > 0) clock.after(NEXT_MS, () => this.#start(true));
    done({ bridge, job, startMs, endMs: clock.nowMs });
    this.#choose();
  }

  /** As the status feed: at once, but not more often than it does. */
  #tellStatus(): void {
    const { clock, at, status } = this.#options;
    if (this.#isStatusDue) return;
    this.#isStatusDue = true;
    clock.at(Math.max(clock.nowMs, this.#statusSentMs + STATUS_GAP_MS), () => {
      this.#isStatusDue = false;
      this.#statusSentMs = clock.nowMs;
      const freeInMs = this.#jobs.reduce((sum, each) => sum + this.#leftMs(each), 0);
      const phase = this.#jobs.length === 0 ? (this.#open === undefined ? 'idle' : 'granted') : 'running';
      const lines = [...this.#lines.values()];
      const offered = {
        count: lines.reduce((sum, { left }) => sum + Math.max(0, left), 0),
        workMs: lines.reduce((sum, line) => sum + leftWorkMs(line), 0),
        sessions: lines.filter(({ left }) => left > 0).length,
      };
      status(hostView(at, { service: this.#service, phase, freeInMs, offered }));
    });
  }

  #view(): ChoiceView {
    const { clock, tokenOf } = this.#options;
    const gpu = { uuid: 'g', totalMiB: 80_000, freeMiB: 60_000, reserveMiB: 0, usable: true, isOut: false };
    const lines = [...this.#lines].map(([bridge, line]): LineView => ({
      ...{ lineId: `${bridge}`, sessionId: `${bridge}`, tokenId: tokenOf(bridge), bridgeId: `${bridge}` },
      ...{ model: MODEL, class: 'batch', count: line.left, workMs: leftWorkMs(line) },
      ...{ rank: line.rank, inFlight: line.inFlight, isDeclined: line.isDeclined },
      waitingMs: clock.nowMs - line.sinceMs,
      wants: [{ slotId: 's', needMiB: 0, gpuCount: 1, onGpus: ['g'] }],
    }));
    return {
      nowMs: clock.nowMs,
      slots: [this.#slot()],
      lines,
      vram: { gpus: [gpu], residents: [], hostRamFreeMiB: 0 },
      leadMs: this.#leadMs,
      turnMs: 30_000,
    };
  }

  #slot(): SlotView {
    const { tokenOf } = this.#options;
    const [running] = this.#jobs;
    const work = [...this.#jobs, ...(this.#open === undefined ? [] : [this.#open])];
    return {
      ...{ slotId: 's', model: MODEL, cannot: false, isReady: true, isMoving: false, isHeldAway: false },
      phase: running === undefined ? (this.#open ? 'granted' : 'idle') : running.startMs ? 'running' : 'accepted',
      gpus: ['g'],
      swapMs: 40_000,
      work: work.map(({ bridge, expectedMs }) => ({
        ...{ tokenId: tokenOf(bridge), sessionId: `${bridge}`, expectedMs },
      })),
      endsInMs: running?.startMs !== undefined && this.#service.samples > 0 ? this.#leftMs(running) : null,
      hasNext: work.length > 1,
    };
  }

  #leftMs({ startMs, expectedMs }: Active): number {
    return startMs === undefined ? expectedMs : Math.max(0, startMs + expectedMs - this.#options.clock.nowMs);
  }
}

function leftWorkMs({ workMs, left, count }: Line): number {
  return (workMs * Math.max(0, left)) / count;
}
