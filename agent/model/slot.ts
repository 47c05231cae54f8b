import { AppError } from '../../shared/errors.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { ModelServer } from './model-server.ts';
import { seconds } from './progress-text.ts';

/** One configured server, up or not, with what the residency has in mind for it. */
export type Slot = {
  /** The alias of its model; replicas are `alias`, `alias#2` ... */
  slotId: string;
  model: ConfiguredModel;
  server: ModelServer;
  /** VRAM that the present work on it may need: the reading of free memory does not show that yet. */
  promisedMiB: number;
  /** The work of getting it ready, joined by all who want it. */
  bringing: Promise<void> | undefined;
  /** What is being done for it, for a person. */
  detail: string | undefined;
  readonly listeners: Set<(text: string) => void>;
  /** Should be up without being asked: preload, pin, or somebody else's. Cleared by a person's offload or release. */
  isWanted: boolean;
  /** Where a preload found no room, it is tried again then. */
  notBeforeMs: number;
  /** Why agent.yaml wants it no more: no grants, and it goes when it has come to rest. */
  leaving: string | undefined;
};

export function newSlot(slotId: string, { model, server }: { model: ConfiguredModel; server: ModelServer }): Slot {
  return {
    ...{ slotId, model, server, promisedMiB: 0, bringing: undefined, detail: undefined },
    ...{ listeners: new Set<(text: string) => void>(), isWanted: shouldBeUp(model), notBeforeMs: 0 },
    leaving: undefined,
  };
}

/** Attached servers are up already, and only have to be found; one that we may start is started when it is needed. */
export function shouldBeUp({ preload, pin, launch }: ConfiguredModel): boolean {
  return preload || pin || (launch.kind === 'attached' && launch.start === undefined);
}

export function isAttached(model: ConfiguredModel): boolean {
  return model.launch.kind === 'attached';
}

/** A server of somebody else is ours to end only where its owner named a program for that. */
export function canEnd({ launch }: ConfiguredModel): boolean {
  return launch.kind === 'owned' || launch.stop !== undefined;
}

export function isWokenByJob({ model }: Slot): boolean {
  return model.engine === 'step1x-edit';
}

/** A job could start without a load or a wake. */
export function isUp(slot: Slot): boolean {
  const { kind } = slot.server.state;
  return kind === 'ready' || (kind === 'offloaded' && isWokenByJob(slot));
}

/** No job runs on it, and nobody is getting it ready for one. */
export function isIdle({ server, bringing }: Slot): boolean {
  return server.inFlight === 0 && bringing === undefined;
}

/** Throws for a server that failed and may not be started yet, or not by itself. */
export function refuseFailed({ server, model }: Slot): void {
  const { state } = server;
  if (state.kind !== 'failed') return;
  const { error: cause, retry } = state;
  if (retry === 'never') {
    const hint = `It is not started again by itself; correct the cause, then load_model ${model.alias}.`;
    throw new AppError('MODEL_FAILED', `${cause.message}\n${hint}`, { cause });
  }
  const inMs = retry.atMs - performance.now();
  if (inMs <= 0) return;
  throw new AppError('MODEL_FAILED', `${cause.message}\nThe next start is possible in ${seconds(inMs)}.`, { cause });
}

/** Expected time until it is ready from its present state. */
export function reloadMs({ server }: Slot, o: { loadMs: number; wakeMs: number; retryInMs: number }): number {
  switch (server.state.kind) {
    case 'ready':
      return 0;
    case 'offloaded':
      return o.wakeMs;
    case 'loading':
      return Math.max(0, o.loadMs - server.inStateMs);
    case 'offloading':
      return 2 * o.wakeMs;
    case 'released':
    case 'releasing':
      return o.loadMs;
    case 'failed':
      return o.retryInMs + o.loadMs;
  }
}
