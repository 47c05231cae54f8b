import type { BatchView } from '../fleet/batch-view.ts';

/** What a tool answers: a sentence where it has one, and the words that an assistant reads too. */
export type Answer = { sentence: string; json: Record<string, unknown> };

export type Doing = { message: string; fraction?: number };

/** A batch of this process while it runs. */
export type RunningBatch = { readonly id: string; view: () => BatchView };

export type AskOptions = {
  /** What the call needs: only the records on this machine, the links to the hosts, or also a part in the work. */
  reach: 'records' | 'hosts' | 'work';
  /** Files and directories that the person named: whoever types a path means it. */
  places?: readonly string[];
  /** Called when the tool can say what it is doing; the function it gets says it at any time. */
  onDoing?: (look: () => Doing) => void;
  onBatch?: (batch: RunningBatch) => void;
};

/** Calls a tool, as an assistant does: the same words, checks and sentences. Rejects with what went wrong. */
export type Ask = (tool: string, args: Record<string, unknown>, options: AskOptions) => Promise<Answer>;
