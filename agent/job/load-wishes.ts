import { performance } from 'node:perf_hooks';
import { Deadline, untilAborted } from '../../shared/abort.ts';
import type { ModelId } from '../../shared/job.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { Servers } from './servers.ts';
import type { OpenLoad, SlotBoard } from './slot-board.ts';
import type { LineView } from './choice.ts';

type Wish = {
  readonly sinceMs: number;
  readonly moved: Promise<ModelMove>;
  readonly settle: (move: Promise<ModelMove>) => void;
  isStarted: boolean;
};

type LoadWishesOptions = {
  residency: Servers;
  board: SlotBoard;
  moveAnswerMs: number;
  /** Ends what is under way when the exchange ends. */
  signal: AbortSignal;
  kick: () => void;
};

/**
 * What a person asked for by hand. A load is an interactive line without a job: it waits for its turn among the jobs and
 * then has its slot like one. A model that is to leave gets no more jobs, so that it comes to rest.
 */
export class LoadWishes {
  readonly #options: LoadWishesOptions;
  readonly #wishes = new Map<ModelId, Wish>();
  readonly #leaving = new Set<ModelId>();

  constructor(options: LoadWishesOptions) {
    this.#options = options;
  }

  /** The model by its id or by its alias on this host. */
  async move(name: string, to: 'load' | 'offload' | 'release', signal: AbortSignal): Promise<ModelMove> {
    const { slots } = this.#options.residency;
    const slot = slots.find((each) => each.model.id === name) ?? slots.find((each) => each.model.alias === name);
    const model = slot?.model.id ?? name; // an unknown one is refused by the owner of the servers
    if (to === 'load') return await this.#load(model, signal);
    const { residency, kick } = this.#options;
    if (slot !== undefined) this.#leaving.add(model);
    kick();
    try {
      const moved = await residency.move(model, to, signal);
      if (moved.readyInMs === undefined) this.#leaving.delete(model); // else it leaves when its running job has ended
      return moved;
    } catch (error) {
      this.#leaving.delete(model);
      throw error;
    } finally {
      kick();
    }
  }

  /** A person sent its model away and it has not gone yet. */
  isLeaving(slotId: string): boolean {
    const model = this.#modelOf(slotId);
    if (model === undefined || !this.#leaving.has(model)) return false;
    const { residency, board } = this.#options;
    if (board.slotIds(model).some((id) => residency.slotFacts(id).state === 'ready')) return true;
    this.#leaving.delete(model);
    return false;
  }

  lines(nowMs: number): LineView[] {
    const { residency, board } = this.#options;
    return [...this.#wishes]
      .filter(([, wish]) => !wish.isStarted)
      .map(([model, wish]) => ({
        lineId: lineIdOf(model),
        sessionId: '',
        tokenId: '',
        bridgeId: '',
        model,
        class: 'interactive',
        rank: 0,
        count: 1,
        workMs: 0,
        inFlight: 0,
        waitingMs: nowMs - wish.sinceMs,
        isDeclined: false,
        wants: board.slotIds(model).map((slotId) => residency.wantFor(slotId, { megapixels: 1 })),
      }));
  }

  /** Starts the load this grant is for; false when the grant is for a session's line. */
  start(line: LineView, { slotId, gpus }: { slotId: string; gpus: readonly string[] }): boolean {
    const wish = line.lineId === lineIdOf(line.model) ? this.#wishes.get(line.model) : undefined;
    if (wish === undefined) return false;
    wish.isStarted = true;
    const { residency, board, signal, kick } = this.#options;
    const occupant: OpenLoad = { kind: 'load', gpus, expectedMs: 0 };
    board.enter(slotId, occupant);
    wish.settle(
      residency.move(line.model, 'load', signal).finally(() => {
        board.leave(slotId, occupant);
        this.#wishes.delete(line.model);
        kick();
      }),
    );
    return true;
  }

  async #load(model: ModelId, signal: AbortSignal): Promise<ModelMove> {
    const { residency, moveAnswerMs, kick } = this.#options;
    this.#leaving.delete(model);
    if (!this.#wishes.has(model) && !this.#mustWait(model)) return await residency.move(model, 'load', signal);
    const wish = this.#wishes.get(model) ?? this.#wish(model);
    kick();
    using deadline = new Deadline({ ms: moveAnswerMs, signal });
    try {
      return await untilAborted(wish.moved, deadline.signal);
    } catch (error) {
      if (!deadline.isExpired) throw error;
      return this.#stillWaiting(model, wish);
    }
  }

  /** Only a model that is away and could come waits for a turn; everything else is answered by the owner of the servers. */
  #mustWait(model: ModelId): boolean {
    const { residency, board } = this.#options;
    const slotIds = board.slotIds(model);
    const view = board.vram;
    const facts = slotIds.map((slotId) => residency.slotFacts(slotId));
    return (
      !facts.some(({ state }) => state === 'ready' || state === 'loading') &&
      slotIds.some((slotId, index) => {
        const plan = planVram(residency.wantFor(slotId, { megapixels: 1 }), view);
        const canBeGranted = facts[index]?.state !== 'failed' && facts[index]?.leaving === undefined;
        return canBeGranted && plan.kind !== 'impossible';
      })
    );
  }

  #wish(model: ModelId): Wish {
    const { residency, signal } = this.#options;
    let settle = (_move: Promise<ModelMove>): void => undefined;
    const moved = new Promise<ModelMove>((resolve) => (settle = resolve));
    moved.catch(() => undefined); // whoever still waits sees the failure; the next call finds the model failed
    const wish = { sinceMs: performance.now(), moved, settle, isStarted: false };
    this.#wishes.set(model, wish);
    // Its slots give no grants before its weights are there, and never where that fails: that is the answer then.
    residency.pullWeights(model, signal).catch((error: Error) => {
      if (this.#wishes.get(model) !== wish || wish.isStarted) return;
      this.#wishes.delete(model);
      settle(Promise.reject(error));
    });
    return wish;
  }

  #stillWaiting(model: ModelId, wish: Wish): ModelMove {
    const { residency, board } = this.#options;
    const facts = board.slotIds(model).map((slotId) => residency.slotFacts(slotId));
    const download = facts[0]?.download;
    const waiting = wish.isStarted
      ? `${model} is loading.`
      : `${model} waits for its turn: its GPUs run jobs of other models. Ask again to go on waiting.`;
    return {
      model,
      state: download === undefined ? (facts[0]?.state ?? 'unknown') : 'loading',
      done: 'load',
      message: download === undefined ? waiting : `${model} is on its way: ${download.text}. Ask again to wait for it.`,
      tookMs: performance.now() - wish.sinceMs,
      readyInMs: Math.max(0, ...facts.map((each) => each.reloadMs)),
      heldAwayMs: 0,
    };
  }

  #modelOf(slotId: string): ModelId | undefined {
    return this.#options.residency.slots.find((slot) => slot.slotId === slotId)?.model.id;
  }
}

function lineIdOf(model: ModelId): string {
  return `load ${model}`;
}
