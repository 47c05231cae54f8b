import type { Log } from '../../shared/log.ts';
import { Changes } from './changes.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { isSameServer } from './same-server.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, shouldBeUp } from './slot.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type RosterOptions = {
  newSlot: (slotId: string, model: ConfiguredModel) => Slot;
  /** How many servers `replicas: auto` means now. */
  autoReplicas: (model: ConfiguredModel) => number;
  /** A grant, a load or a job has this slot. */
  isTaken: (slotId: string) => boolean;
  /** Ends what is done to get a slot ready that nobody waits for. */
  cut: (slot: Slot) => Promise<void>;
  /** Ends the server of an idle slot. */
  release: (slot: Slot) => Promise<void>;
  work: WorkInHand;
  /** Of the residency. */
  signal: AbortSignal;
  log: Log;
  onChange: () => void;
};

/**
 * The slots of the models that agent.yaml names, and of those that it does not name any more and that have not gone yet.
 * A slot whose server agent.yaml still describes is never touched. One that leaves gets no grants, ends what it has,
 * is released, and is gone; a definition that needs its name or its model comes in only then, so both are always unique.
 */
export class Roster {
  readonly #options: RosterOptions;
  /** Announces that a leaving slot may have come to rest. */
  readonly #rest = new Changes(() => undefined);
  readonly #seenOut = new Set<Slot>();
  #wanted: readonly ConfiguredModel[] = [];
  #slots: readonly Slot[] = [];

  constructor(options: RosterOptions) {
    this.#options = options;
  }

  get slots(): readonly Slot[] {
    return this.#slots;
  }

  /** One object for each model, which all its slots and servers share. */
  get models(): ConfiguredModel[] {
    return [...new Set(this.#slots.map(({ model }) => model))];
  }

  slotsOf(model: ConfiguredModel): Slot[] {
    return this.#slots.filter((slot) => slot.model === model);
  }

  /** From now on these models, whatever was asked for before. Returns at once; what has to leave takes its time. */
  change(models: readonly ConfiguredModel[]): void {
    this.#wanted = models;
    this.settle();
  }

  /** As `change`, for the same models: the number of GPUs may have become known. True where there are other slots now. */
  settle(): boolean {
    const before = this.#slots;
    for (const model of this.models) this.#keepOrLeave(model);
    for (const next of this.#wanted) this.#bringIn(next);
    this.#slots = [...this.#slots].sort((a, b) => this.#place(a) - this.#place(b));
    for (const slot of this.#slots) {
      if (slot.leaving === undefined || this.#seenOut.has(slot)) continue;
      this.#seenOut.add(slot);
      void this.#options.work.hold(this.#seeOut(slot).finally(() => this.#seenOut.delete(slot)));
    }
    return before.length !== this.#slots.length || before.some((slot, at) => slot !== this.#slots[at]);
  }

  /** Something ended that may have kept a slot from leaving. */
  look(): void {
    if (this.#seenOut.size > 0) this.#rest.announce();
  }

  /** 1. What agent.yaml still describes stays, under its new policies. */
  #keepOrLeave(model: ConfiguredModel): void {
    const slots = this.slotsOf(model);
    const next = this.#wanted.find((each) => isSameServer(each, model));
    if (next === undefined) {
      const isReplaced = this.#wanted.some(({ alias }) => alias === model.alias);
      for (const slot of slots) leave(slot, isReplaced ? CHANGED : REMOVED);
      return;
    }
    const count = this.#count(next, slots);
    const isOther = shouldBeUp(model) !== shouldBeUp(next);
    Object.assign(model, next); // the one object that its slots and servers hold
    for (const [at, slot] of slots.entries()) {
      if (at >= count) leave(slot, FEWER);
      else if (isOther || slot.leaving !== undefined)
        Object.assign(slot, { leaving: undefined, isWanted: shouldBeUp(next) });
    }
  }

  /** 2. What is new comes in, once nothing of its name or its model is left. */
  #bringIn(next: ConfiguredModel): void {
    const present = this.models.find((model) => isSameServer(next, model));
    const isBlocked = this.#slots.some(
      ({ leaving, model }) => leaving !== undefined && (model.alias === next.alias || model.id === next.id),
    );
    if (present === undefined && isBlocked) return;
    const model = present ?? { ...next };
    const slots = this.slotsOf(model);
    for (let at = 0; at < this.#count(next, slots); at += 1) {
      const slotId = at === 0 ? model.alias : `${model.alias}#${at + 1}`;
      if (slots.some((slot) => slot.slotId === slotId)) continue;
      this.#slots = [...this.#slots, this.#options.newSlot(slotId, model)];
    }
  }

  /** A GPU that was lost may come back: an automatic number only grows. */
  #count(next: ConfiguredModel, slots: readonly Slot[]): number {
    if (next.replicas !== 'auto') return next.replicas;
    const [first] = slots;
    const present = first?.model.replicas === 'auto' ? slots.filter(({ leaving }) => leaving === undefined).length : 1;
    return Math.max(present, this.#options.autoReplicas(first?.model ?? next));
  }

  #place({ model }: Slot): number {
    const at = this.#wanted.findIndex((next) => isSameServer(next, model));
    return at < 0 ? this.#wanted.length : at;
  }

  /** Until the slot has gone, or is wanted again. */
  async #seeOut(slot: Slot): Promise<void> {
    const { signal, isTaken, cut } = this.#options;
    while (slot.leaving !== undefined && !signal.aborted) {
      const isInUse = isTaken(slot.slotId) || slot.listeners.size > 0;
      if (!isInUse && slot.bringing !== undefined) await cut(slot);
      if (isInUse || !isIdle(slot)) await this.#nextRest();
      else if ('server' in slot.server.state && !isAttached(slot.model)) await this.#release(slot);
      else return this.#drop(slot);
    }
  }

  #drop(slot: Slot): void {
    const { work, log, onChange } = this.#options;
    this.#slots = this.#slots.filter((other) => other !== slot);
    void work.hold(slot.server.shutdown({ graceMs: 0 })); // nothing of it runs: only what listens to its lifetime ends
    log.info({ event: 'slot-removed', slotId: slot.slotId, reason: slot.leaving });
    this.settle();
    onChange();
  }

  async #release(slot: Slot): Promise<void> {
    const { release, signal, log } = this.#options;
    try {
      await release(slot);
    } catch (error) {
      if (!signal.aborted) log.warn({ event: 'slot-not-released', slotId: slot.slotId, error: String(error) });
      await this.#nextRest();
    }
  }

  async #nextRest(): Promise<void> {
    await this.#rest.next(this.#options.signal).catch(() => undefined); // the agent stops
  }
}

function leave(slot: Slot, reason: string): void {
  slot.leaving = reason;
  slot.isWanted = false;
}

const REMOVED = 'It was removed from agent.yaml.';
const CHANGED = 'Its definition in agent.yaml has changed: its server is replaced.';
const FEWER = 'agent.yaml asks for fewer replicas of it.';
