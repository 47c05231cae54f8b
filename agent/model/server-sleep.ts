import { AppError } from '../../shared/errors.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { offloadedMiB } from './footprint.ts';
import type { MoveSite } from './move-site.ts';
import type { Moved } from './moved.ts';
import { died, words } from '../server/server-failure.ts';
import { untilRisen } from './vram-rise.ts';
import { pollMsFor, untilSettled } from '../gpu/vram-verifier.ts';

/** So much of what an offload freed must be back on the GPU that a wake is believed. */
const RISEN_SHARE = 0.5;
/** Less than this is the driver's own coming and going. */
const NOISE_MIB = 256;

/**
 * Offload and wake of one server. The engine's word is a claim: what nvidia-smi shows decides what is said, what is learned
 * from it, and whether a server that says it woke is believed.
 */
export class ServerSleep {
  readonly #site: MoveSite;
  /** What its last offload freed: a wake takes it again. */
  #asleepMiB = 0;

  constructor(site: MoveSite) {
    this.#site = site;
  }

  /** Another process has come in its place. */
  begin(): void {
    this.#asleepMiB = 0;
  }

  /** Why weights of this server cannot go to host RAM now, for a person; undefined where they can. */
  whyNotOffload(): string | undefined {
    const { model, engine, life, learned, hostRamFreeMiB } = this.#site.options;
    if (model.offload === 'none') return 'the configuration says `offload: none`';
    if (this.#site.isUnified()) return 'its GPU has no memory of its own, so that in host RAM it would take as much';
    const why = engine.whyNotOffload(model);
    if (why !== undefined || engine.wakesBy === 'job' || !this.#site.isOurs) return why;
    const needMiB = Math.round(life.vram.heldMiB - offloadedMiB(learned.of(model.id), model));
    const freeMiB = Math.round(hostRamFreeMiB());
    if (needMiB <= freeMiB) return undefined;
    return `its weights take ${needMiB} MiB of host RAM, and ${freeMiB} MiB are free for that`;
  }

  /** Of a ready server without a job. Counts as under way from the moment of the call. */
  async offload(): Promise<Moved> {
    const { engine, model, look, times, life } = this.#site.options;
    const { signal } = life;
    const startMs = performance.now();
    life.becomes('offloading');
    const before = await this.#site.look();
    const heldBeforeMiB = life.vram.heldMiB;
    await this.#assertNoStranger();
    try {
      await engine.offload(this.#site.call());
    } catch (error) {
      await life.throwIfCutByDeath(error);
      await this.#recover(error);
      throw new AppError('ENGINE_FAILED', `${model.alias} was not offloaded: ${words(error)}`, { cause: error });
    }
    // Of somebody else's server it is not known what it holds, only what such a model does.
    const expectedMiB = this.#site.isOurs ? heldBeforeMiB : this.#site.loadedMiB();
    const claim = before && { gpus: this.#site.gpusToLookAt(), pids: life.pids(), before, heldMiB: expectedMiB };
    const limits = { look, deadlineMs: times.vramBackMs, pollMs: pollMsFor(times), signal };
    const verdict = claim && (await untilSettled(claim, limits));
    await life.throwIfDead();
    const after = verdict?.after;
    if (after !== undefined && this.#site.isOurs) life.vram.count(after);
    // An engine that wakes by the job keeps no state of its own here: what nvidia-smi shows is what it is.
    life.becomes(engine.wakesBy === 'call' || verdict?.isBack === true ? 'offloaded' : 'ready');
    this.#asleepMiB = after === undefined ? 0 : Math.max(0, verdict?.freedMiB ?? 0);
    if (after !== undefined) this.#learnOffload(this.#asleepMiB);
    return this.#site.moved('offload', { startMs, before, after, heldBeforeMiB });
  }

  /** Of an offloaded server. A failure ends the process: nobody knows what is left of it. */
  async wake(): Promise<Moved> {
    const { engine, learned, model, life } = this.#site.options;
    const startMs = performance.now();
    const heldBeforeMiB = life.vram.heldMiB;
    life.becomes('loading');
    // Somebody else's has no look of its own that is kept.
    const before = this.#site.isOurs ? life.vram.measure : await this.#site.look();
    try {
      await engine.wake(this.#site.call());
      if (!(await life.isHealthy())) throw died(model.alias, 'does not answer after it woke');
    } catch (error) {
      await life.throwIfCutByDeath(error);
      const message = `Waking ${model.alias} failed: ${words(error)}`;
      throw await life.buriedFor(new AppError('MODEL_FAILED', message, { cause: error }));
    }
    const after = await this.#lookAtWoken(before);
    await life.throwIfDead();
    this.#site.becomeReady();
    learned.woken(model.id, { tookMs: performance.now() - startMs });
    return this.#site.moved('wake', { startMs, before, after, heldBeforeMiB });
  }

  /** The engine may say yes and do nothing: then what it held before is still missing on the GPU. */
  async #lookAtWoken(before: VramMeasure | undefined): Promise<VramMeasure | undefined> {
    const { life, times, learned, model, log, slotId } = this.#site.options;
    const wantMiB = RISEN_SHARE * this.#asleepMiB;
    if (before === undefined || wantMiB < NOISE_MIB) return this.#site.look();
    const limits = { deadlineMs: times.vramBackMs, pollMs: pollMsFor(times), signal: life.signal };
    const { after, risenMiB } = await untilRisen(() => this.#site.look(), { before, wantMiB, ...limits });
    if (after === undefined || risenMiB >= wantMiB) return after;
    log.warn({ event: 'wake-unconfirmed', slotId, risenMiB, offloadedMiB: this.#asleepMiB, isListed: after.isListed });
    // Without rows of its own somebody else may have given back what this one took.
    if (!after.isListed || !before.isListed) return after;
    learned.offloaded(model.id, { heldMiB: this.#site.loadedMiB() }); // from now on it is released instead
    const message =
      `${model.alias} says that it woke, but nvidia-smi shows only ${Math.round(risenMiB)} of ` +
      `${Math.round(this.#asleepMiB)} MiB back on the GPU. It is ended, and will not be offloaded again.`;
    throw await life.buriedFor(new AppError('MODEL_FAILED', message));
  }

  /** After a refused offload nobody knows whether the engine sleeps: only a wake that works makes it usable. */
  async #recover(cause: unknown): Promise<void> {
    const { engine, model, life, learned } = this.#site.options;
    try {
      if (isTimeout(cause)) throw cause; // it would not answer this either
      await engine.wake(this.#site.call());
      if (!(await life.isHealthy())) throw died(model.alias, 'does not answer after a failed offload');
    } catch {
      const message = `Offloading ${model.alias} broke its server: ${words(cause)}`;
      throw await life.buriedFor(new AppError('MODEL_FAILED', message));
    }
    await life.throwIfDead();
    this.#site.becomeReady();
    learned.offloaded(model.id, { heldMiB: this.#site.loadedMiB() }); // policies and evictions release it from now on
  }

  /** A server of somebody else may be at their work: sleep would break it. */
  async #assertNoStranger(): Promise<void> {
    const { engine, model, life } = this.#site.options;
    if (this.#site.isOurs || !(await engine.isWorking(this.#site.call()))) return;
    await life.throwIfDead();
    this.#site.becomeReady();
    throw new AppError('GPU_BUSY', `${model.alias} is working for somebody else. Offload it when that has ended.`);
  }

  /** What it keeps decides whether policies offload it at all. */
  #learnOffload(freedMiB: number): void {
    const { learned, model, life } = this.#site.options;
    if (this.#site.isOurs) learned.offloaded(model.id, { heldMiB: life.vram.heldMiB });
    else learned.offloaded(model.id, { heldMiB: freedMiB < NOISE_MIB ? this.#site.loadedMiB() : null });
  }
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'TimeoutError';
}
