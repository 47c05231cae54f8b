import { pause } from '../../shared/abort.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import { NOWHERE } from '../engine/image-answer.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { MoveSite } from './move-site.ts';
import type { MoveOptions } from './move-site.ts';
import type { Moved } from './moved.ts';
import { notMoved } from './moved.ts';
import { watchPeak } from './peak-watch.ts';
import { words } from '../server/server-failure.ts';
import type { ServerJobs } from './server-jobs.ts';
import type { ServerLife } from './server-life.ts';
import { ServerSleep } from './server-sleep.ts';
import { pollMsFor } from '../gpu/vram-verifier.ts';
import { warmUpJob } from './warm-up.ts';

/** Less than this share still held after a job: the engine has moved the weights to host RAM by itself. */
const GONE_SHARE = 0.5;

/**
 * The transitions of one server, one at a time: its ModelServer sees to that. Each answers with the VRAM before and after by
 * nvidia-smi, and is learned from.
 */
export class ServerMoves {
  readonly #site: MoveSite;
  readonly #sleep: ServerSleep;
  readonly counts = { loads: 0, wakes: 0, offloads: 0, releases: 0 };

  constructor(options: MoveOptions & { life: ServerLife; jobs: ServerJobs }) {
    this.#site = new MoveSite(options);
    this.#sleep = new ServerSleep(this.#site);
  }

  loadedMiB(): number {
    return this.#site.loadedMiB();
  }

  async load(gpus: readonly string[], known: VramMeasure | undefined): Promise<Moved> {
    const { model, engine, sampler, learned, life, isAlone } = this.#site.options;
    const { kind } = life.state;
    if (kind === 'ready') return notMoved(life.vram.heldMiB);
    if (kind === 'offloaded') return this.wake();
    if (kind !== 'released' && kind !== 'failed') throw new Error(`cannot load a server that is ${kind}`);
    const startMs = performance.now();
    const isOurs = this.#site.isOurs;
    const before = isOurs ? known : await this.#site.look();
    const wasAlone = isAlone(gpus);
    this.#sleep.begin();
    await life.begin(gpus, isOurs ? before : undefined);
    using peak = watchPeak(sampler, gpus);
    try {
      await life.untilAnswering();
      if (isOurs) await this.#finishLoad();
    } catch (error) {
      await life.throwIfCutByDeath(error);
      throw await life.buriedFor(toAppError(error, 'MODEL_FAILED'));
    }
    const after = await this.#site.look();
    await life.throwIfDead();
    this.#site.becomeReady();
    this.#site.options.jobs.begin({ isWarm: isOurs && (model.warmsUp || engine.wakesBy === 'job') });
    this.counts.loads += 1;
    const { heldMiB } = life.vram;
    // Where the engine moves the weights away again by itself, what it held in between is what loading takes.
    const hasStayed = engine.wakesBy === 'call' || heldMiB > GONE_SHARE * this.#site.loadedMiB();
    const wentUpMiB = peak.usedMiB() > 2 * heldMiB ? peak.usedMiB() : undefined;
    const isItsOwn = after?.isListed === true || (wasAlone && isAlone(gpus));
    const shownMiB = hasStayed ? heldMiB : wentUpMiB;
    learned.loaded(model.id, { tookMs: performance.now() - startMs, heldMiB: isItsOwn ? shownMiB : undefined });
    const moved = this.#site.moved('load', { startMs, before, after, heldBeforeMiB: 0 });
    if (engine.wakesBy === 'job') this.settleByItself();
    return moved;
  }

  async wake(): Promise<Moved> {
    const { engine, life } = this.#site.options;
    if (life.state.kind !== 'offloaded') return notMoved(life.vram.heldMiB);
    if (engine.wakesBy === 'job') {
      this.wakeByJob();
      return notMoved(life.vram.heldMiB);
    }
    const moved = await this.#sleep.wake();
    this.counts.wakes += 1;
    return moved;
  }

  /** For engines that wake by the job itself: from now on it counts as ready. */
  wakeByJob(): void {
    const { engine, life } = this.#site.options;
    if (engine.wakesBy !== 'job' || life.state.kind !== 'offloaded') return;
    life.becomes('loading');
    this.#site.becomeReady();
  }

  /** Weights to host RAM. Where that cannot be, it is a release, and the answer says why. */
  async offload(): Promise<Moved> {
    const { life, jobs } = this.#site.options;
    if (life.state.kind !== 'ready') return notMoved(life.vram.heldMiB);
    jobs.assertIdle();
    const why = this.#sleep.whyNotOffload();
    if (why !== undefined) return { ...(await this.release({ why })), why };
    const moved = await this.#sleep.offload();
    this.counts.offloads += 1;
    return moved;
  }

  /** Ends the process and waits for its VRAM. */
  async release({ why }: { why?: string } = {}): Promise<Moved> {
    const { model, life, jobs } = this.#site.options;
    const { launch } = model;
    if (launch.kind === 'attached' && launch.stop === undefined) {
      const cannot = why === undefined ? '' : `${model.alias} cannot be offloaded: ${why}. `;
      const next = why === undefined ? 'Offload it, or stop it' : 'Stop it';
      const message = `${cannot}${model.alias} runs at ${launch.url} and was started by someone else, so it is not ours to end. `;
      throw new AppError('INVALID_ARGUMENT', `${message}${next} where it was started.`);
    }
    if (!('server' in life.state)) return notMoved(life.vram.heldMiB);
    const startMs = performance.now();
    jobs.assertIdle(); // in the same tick as the burial
    const { before, after, heldMiB, error } = await life.bury('asked');
    if (error !== undefined) throw error;
    this.counts.releases += 1;
    return this.#site.moved('release', { startMs, before, after, heldBeforeMiB: heldMiB });
  }

  /** After an edit such an engine goes back to host RAM by itself; it is offloaded when nvidia-smi agrees. */
  settleByItself(): void {
    // Never rejects. Meanwhile the next job may have begun.
    void this.#site.options.life.look().then(() => this.settleAsSeen());
  }

  /** As `settleByItself`, by the last look. */
  settleAsSeen(): void {
    const { life, jobs, learned, model, engine } = this.#site.options;
    if (engine.wakesBy !== 'job' || life.state.kind !== 'ready' || jobs.inFlight > 0) return;
    if (life.vram.measure === undefined || !this.#site.isOurs) return;
    if (life.vram.heldMiB > GONE_SHARE * this.#site.loadedMiB()) return;
    life.becomes('offloading');
    life.becomes('offloaded');
    learned.offloaded(model.id, { heldMiB: life.vram.heldMiB });
  }

  /** With a look every moment where the weights may be on the GPU for a second only. */
  async #finishLoad(): Promise<void> {
    const { engine, sampler, times, life } = this.#site.options;
    const done = new AbortController();
    const finishing = engine.finishLoad(life.call(times.startDeadlineMs)).finally(() => done.abort());
    finishing.catch(() => undefined); // awaited below
    while (engine.wakesBy === 'job' && !done.signal.aborted) {
      await sampler.sampleNow(done.signal).catch(() => undefined); // the end of the edit, or a driver that does not answer
      await pause(pollMsFor(times), done.signal);
    }
    await finishing;
    if (engine.wakesBy === 'call') await this.#warmUp();
  }

  async #warmUp(): Promise<void> {
    const { engine, model, times, life } = this.#site.options;
    if (!model.warmsUp) return;
    const { request, inputs } = warmUpJob(model);
    try {
      await engine.run(request, inputs, { ...life.call(times.startDeadlineMs), sink: NOWHERE });
    } catch (error) {
      life.signal.throwIfAborted();
      if (!(error instanceof AppError) && !isTimeout(error)) throw error; // cut: it died, and its death says more
      const code = error instanceof AppError ? error.code : 'TIMEOUT';
      const message = `${model.alias} was started, but its warm-up image failed: ${words(error)}`;
      throw new AppError(code, message, { cause: error });
    }
  }
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'TimeoutError';
}
