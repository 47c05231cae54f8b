import type { JobClass, ModelId } from '../../shared/job.ts';
import type { VramView, VramWant } from '../gpu/vram-planner.ts';
import type { TurnMemory } from './turn-memory.ts';

/** One slot as the choice sees it. */
export type SlotView = {
  slotId: string;
  model: ModelId;
  phase: 'idle' | 'granted' | 'accepted' | 'running';
  /** Failed, degraded GPU, draining, disk full, or asked away by a person: never granted. */
  cannot: boolean;
  /** A job could start without a load or wake. */
  isReady: boolean;
  /** Its server is being loaded, offloaded or released without a job. */
  isMoving: boolean;
  /** A person sent the model away: batch lines do not bring it back. */
  isHeldAway: boolean;
  /** Where its server is, and where its open grant will put it. */
  gpus: readonly string[];
  /** Time to bring the model in: from its present state, or, while it is ready, from the state eviction leaves it in. */
  swapMs: number;
  /** Whose the jobs are that it has, with the time each is expected to run. */
  work: readonly { tokenId: string; sessionId: string; expectedMs: number }[];
  /** Expected time to the end of the running job; null where it is not known well enough to grant ahead of it. */
  endsInMs: number | null;
  /** One more job is already granted or accepted behind the running one. */
  hasNext: boolean;
};

/** One line of a session's offer. `wants` has the VRAM its largest job needs on each slot of its model. */
export type LineView = {
  lineId: string;
  sessionId: string;
  tokenId: string;
  /** The same on every host. */
  bridgeId: string;
  model: ModelId;
  class: JobClass;
  /** Place of this host among those its bridge offers the line to. */
  rank: number;
  /** Jobs left: those granted since the line was sent are subtracted. */
  count: number;
  workMs: number;
  inFlight: number;
  waitingMs: number;
  isDeclined: boolean;
  wants: readonly VramWant[];
};

/** All that the choice sees. */
export type ChoiceView = {
  nowMs: number;
  slots: readonly SlotView[];
  lines: readonly LineView[];
  vram: VramView;
  /** How long before the end of a running job the next one may be granted. */
  leadMs: number;
  /** Shortest turn; the other times of the choice are fractions of it. */
  turnMs: number;
};

/** One slot for one job of a line. */
export type Grant = {
  slotId: string;
  line: LineView;
  gpus: readonly string[];
  evict: readonly { slotId: string; by: 'offload' | 'release' }[];
  startsInMs: number;
  /** It takes the GPUs from other models. */
  isDue: boolean;
  /** It begins when the running job of the same slot has ended. */
  isLead: boolean;
};

/** What the choice decided. */
export type Choice = {
  grants: readonly Grant[];
  /** Slots that give no grants because another model is due on their GPUs. */
  closed: ReadonlyMap<string, ModelId>;
  memory: TurnMemory;
  /** Time alone changes the choice then; undefined: only an event does. */
  againInMs: number | undefined;
};
