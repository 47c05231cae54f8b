import { performance } from 'node:perf_hooks';
import { AppError } from '../../shared/errors.ts';
import type { OfferedWork, SlotStatus } from '../../shared/host-snapshot.ts';
import type { Job, ModelId } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { ModelMove, Notification, OfferLine, Params, Result } from '../../shared/protocol.ts';
import type { ActiveJob } from './active-job.ts';
import { Alarm } from './alarm.ts';
import { DiskWatch } from './disk-watch.ts';
import type { Drain } from './drain.ts';
import { Grants } from './grants.ts';
import type { InputStore } from './input-store.ts';
import { JobDesk } from './job-desk.ts';
import type { JobTally } from './job-tally.ts';
import type { Journal } from './journal.ts';
import { LoadWishes } from './load-wishes.ts';
import { OfferBook } from './offer-book.ts';
import type { ResultStore } from './result-store.ts';
import type { Servers } from './servers.ts';
import type { SessionOptions } from './session.ts';
import { Session } from './session.ts';
import { SlotBoard } from './slot-board.ts';
import type { ChoiceView, Grant } from './choice.ts';
import { choiceView } from './choice-view.ts';
import { choose } from './slot-scheduler.ts';
import type { TurnMemory } from './turn-memory.ts';
import { EMPTY_MEMORY, rememberRefusal, rememberRun, rememberTurn } from './turn-memory.ts';

export type ExchangeOptions = {
  residency: Servers;
  journal: Journal;
  results: ResultStore;
  inputs: InputStore;
  drain: Drain;
  times: { grantMs: number; inputSilenceMs: number; turnMs: number; moveAnswerMs: number };
  /** The servers are not cleared up yet: no grants and no moves before `begin`. */
  isStarting?: boolean;
  isSimulated: () => boolean;
  hostname: string;
  log: Log;
  onChange: () => void;
};

/**
 * How long before the expected end of a running job the next one may be granted: a multiple of what a grant was seen to take
 * until its job started, because a job also ends sooner than expected, and each ms too few is a ms of an idle engine.
 */
const LEAD = { leastMs: 50, times: 2, mostMs: 2_000 };
/** From the end of a job the next request takes less to be on its way; measured, a choice in between held it up by 0.5 ms. */
const KICK_MS = 3;
/** How often a disk that refused a line is tried again. */
const PROBE_EVERY_MS = 2_000;
/** Read on both sides, and what ends it is another command on each. */
const DRAINING = 'The host is draining: `gantry-agent resume` there, or `gantry resume HOST` on a laptop, ends that.';
const STARTING = 'The agent is starting: it clears up what the last one left, and looks at the GPUs.';

/**
 * Where waiting work meets free slots: sessions' offers in, grants out, accepted jobs run. The only one that writes slots,
 * grants and attempts. Nothing here is a queue: work waits where it was asked for.
 */
export class Exchange implements AsyncDisposable {
  readonly #options: ExchangeOptions;
  readonly #offers = new OfferBook();
  readonly #board: SlotBoard;
  readonly #wishes: LoadWishes;
  readonly #sessions = new Set<Session>();
  readonly #desk: JobDesk;
  readonly #grants: Grants;
  readonly #disk: DiskWatch;
  readonly #closing = new AbortController();
  readonly #alarm = new Alarm();
  readonly #kicked = new Alarm();
  #memory: TurnMemory = EMPTY_MEMORY;
  #closed: ReadonlyMap<string, ModelId> = new Map();
  #leadMs = 0;
  #isStarting: boolean;
  #isStopping = false;
  #isKicked = false;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#isStarting = options.isStarting ?? false;
    this.#board = new SlotBoard(options.residency);
    this.#wishes = new LoadWishes({
      residency: options.residency,
      board: this.#board,
      moveAnswerMs: options.times.moveAnswerMs,
      signal: this.#closing.signal,
      kick: () => this.kick(),
    });
    this.#desk = new JobDesk({
      ...options,
      inputSilenceMs: options.times.inputSilenceMs,
      notify: (tokenId, notification) => this.#notify(tokenId, notification),
      onStarted: (slotId, active) => this.#started(slotId, active),
      onServed: ({ tokenId, sessionId }, runMs) =>
        (this.#memory = rememberRun(this.#memory, { tokenId, sessionId, runMs })),
      onLeft: (slotId, active) => {
        this.#board.leave(slotId, active);
        this.kick();
      },
      onChange: () => this.kick(),
    });
    this.#grants = new Grants({
      board: this.#board,
      offers: this.#offers,
      grantMs: options.times.grantMs,
      log: options.log,
      onDueRefused: (model) => this.#dueRefused(model),
      kick: () => this.kick(),
    });
    this.#disk = new DiskWatch({
      stores: [options.journal, options.results],
      everyMs: PROBE_EVERY_MS,
      onWritable: () => this.kick(),
    });
  }

  /** The servers are cleared up: from now on there are grants. */
  begin(): void {
    this.#isStarting = false;
    this.kick();
  }

  /** An older session of the same bridge ends first: it is what is left of a broken link. */
  openSession(options: SessionOptions): Session {
    for (const session of [...this.#sessions]) {
      if (session.bridgeId !== options.bridgeId || session.tokenId !== options.token.id) continue;
      session.close();
      session.onReplaced();
    }
    const session: Session = new Session(options, {
      desk: this.#desk,
      close: () => this.#close(session),
      offer: (lines) => this.#offer(session, lines),
      take: (params) => this.#take(session, params),
      decline: (grantId) => this.#grants.decline(session, grantId),
      kick: () => this.kick(),
    });
    this.#sessions.add(session);
    return session;
  }

  /** The state of every slot, by its id. */
  slots(): Map<string, SlotStatus> {
    const reason = this.refusal;
    return new Map(
      this.#options.residency.slots.map(({ slotId, model }) => {
        const isLeaving = this.#wishes.isLeaving(slotId);
        const sizes = this.#offers.sizes(model.id);
        return [slotId, this.#board.status(slotId, { reason, isLeaving, dueModel: this.#closed.get(slotId), sizes })];
      }),
    );
  }

  /** What all sessions offer, as counts. */
  offered(): OfferedWork[] {
    return this.#offers.counts();
  }

  /** How jobs ended since the start. */
  get jobCounts(): JobTally['models'] {
    return this.#desk.tally.models;
  }

  get isDraining(): boolean {
    return this.#options.drain.isDraining || this.#isStopping;
  }

  /** Why no slot of this host gives grants; undefined when they do. */
  get refusal(): string | undefined {
    return this.#obstacle ?? (this.#options.drain.isDraining ? DRAINING : undefined);
  }

  /** Something has this slot: a grant, a load or a job. It must not vanish under it. */
  isTaken(slotId: string): boolean {
    return this.#board.isTaken(slotId);
  }

  /** No grants and no preloads; what was accepted ends. Lasts until `resume`, also over a restart of the agent. */
  async drain(): Promise<Result<'host.drain'>> {
    const kept = this.#options.drain.set(true);
    this.#grants.withdraw(() => true);
    this.kick();
    await kept;
    return this.#drained();
  }

  async resume(): Promise<Result<'host.resume'>> {
    const kept = this.#options.drain.set(false);
    this.kick();
    await kept;
    return this.#drained();
  }

  /** A person's load, offload or release. A load waits for its turn like an interactive job without a job. */
  async move(model: ModelId, to: 'load' | 'offload' | 'release', signal: AbortSignal): Promise<ModelMove> {
    if (this.#isStarting) throw new AppError('GPU_BUSY', `${STARTING} Ask again in some seconds.`);
    return await this.#wishes.move(model, to, signal);
  }

  inputArrived(tokenId: string, sha256: string): void {
    this.#options.inputs.arrived(tokenId, sha256);
  }

  /**
   * Something changed: choose again in a moment, once for all that changes until then. The end of a job says so several
   * times, and the request of the next one, which waits for nothing but its turn, goes out first. Without jobs nothing does.
   */
  kick(): void {
    if (this.#isKicked || this.#closing.signal.aborted) return;
    this.#isKicked = true;
    this.#kicked.set(this.#board.jobs().length > 0 ? KICK_MS : 0, () => {
      this.#isKicked = false;
      this.#choose();
      this.#options.onChange();
    });
  }

  /** Ends everything of a token that was revoked: sessions, grants, jobs, results, inputs. */
  async forget(tokenId: string): Promise<void> {
    for (const session of [...this.#sessions]) if (session.tokenId === tokenId) session.close();
    await this.#desk.forget(tokenId);
  }

  /** No grants; running jobs have their grace, then they end as INTERRUPTED. */
  async shutdown(grace: { jobGraceMs: number }): Promise<void> {
    this.#isStopping = true;
    this.#grants.withdraw(() => true);
    this.kick();
    await this.#desk.shutdown(grace);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown({ jobGraceMs: 0 });
    this.#closing.abort();
    this.#alarm.clear();
    this.#kicked.clear();
    for (const session of [...this.#sessions]) session.close();
    await this.#disk[Symbol.asyncDispose]();
    await this.#desk[Symbol.asyncDispose]();
  }

  #drained(): Result<'host.drain'> {
    return { isDraining: this.#options.drain.isDraining, running: this.#desk.activeCount };
  }

  /** Why nothing at all is started here. While the host only drains, a person may still move its models. */
  get #obstacle(): string | undefined {
    if (this.#isStopping) return 'The agent is stopping.';
    if (this.#isStarting) return STARTING;
    return this.#disk.failure?.message;
  }

  #choose(): void {
    const { residency } = this.#options;
    this.#grants.withdraw(({ slotId }) => residency.slotFacts(slotId).leaving !== undefined);
    const view = this.#view();
    const { grants, closed, memory, againInMs } = choose(view, this.#memory);
    this.#memory = memory;
    this.#closed = closed;
    for (const grant of grants) this.#grant(grant);
    this.#fetchWeights(view);
    if (againInMs === undefined) this.#alarm.clear();
    else this.#alarm.set(Math.max(5, againInMs), () => this.kick());
  }

  /**
   * Slots without weights give no grants, so nobody would ever bring them in. Not for a line that has just come: another host
   * may be about to take it, and a download is long.
   */
  #fetchWeights({ lines, turnMs }: ChoiceView): void {
    if (this.#obstacle !== undefined) return;
    const waiting = lines.filter((line) => !line.isDeclined && line.count > 0 && line.waitingMs >= turnMs / 3);
    for (const model of new Set(waiting.map((line) => line.model))) this.#options.residency.fetchWeights(model);
  }

  #view(): ChoiceView {
    const { residency, results, times, drain } = this.#options;
    const view = choiceView({
      board: this.#board,
      offers: this.#offers,
      wishes: this.#wishes,
      residency,
      // The sessions that may have grants now.
      sessions: drain.isDraining
        ? []
        : [...this.#sessions].filter((each) => !each.isMuted && !results.isFull(each.tokenId)),
      refusal: this.#obstacle,
    });
    return {
      ...view,
      leadMs: Math.min(LEAD.mostMs, Math.max(LEAD.leastMs, LEAD.times * this.#leadMs)),
      turnMs: times.turnMs,
    };
  }

  #grant(grant: Grant): void {
    if (this.#wishes.start(grant.line, grant)) return;
    const session = [...this.#sessions].find((each) => each.sessionId === grant.line.sessionId);
    if (session === undefined) throw new Error('a grant needs a session');
    this.#grants.issue(session, grant);
  }

  #dueRefused(model: ModelId): void {
    // 5 s with the standard times.
    const untilMs = performance.now() + this.#options.times.grantMs;
    this.#memory = rememberRefusal(this.#memory, model, untilMs);
  }

  #close(session: Session): void {
    if (!this.#sessions.delete(session)) return;
    this.#offers.remove(session.sessionId);
    this.#grants.withdraw(({ grant }) => grant.sessionId === session.sessionId);
    this.kick();
  }

  #offer(session: Session, lines: readonly OfferLine[]): void {
    if (!this.#sessions.has(session)) return; // it ended while this was on its way
    this.#offers.replace(session, lines, performance.now());
    this.kick();
  }

  async #take(session: Session, { grantId, job }: Params<'job.take'>): Promise<Result<'job.take'>> {
    if (this.#desk.isKnown(session.tokenId, job)) {
      this.#grants.decline(session, grantId);
      return await this.#desk.takeAgain(session.tokenId, job);
    }
    const open = this.#grants.find(session, grantId);
    if (open === undefined) {
      throw new AppError('GRANT_EXPIRED', 'This grant went back before it was taken. The job waits for the next one.');
    }
    const { slotId, grant } = open;
    const misfit = this.#misfit(open, job);
    if (misfit !== undefined) {
      this.#grants.decline(session, grantId);
      throw new AppError('INVALID_ARGUMENT', `${misfit} The grant went back; the job was not accepted.`);
    }
    this.#grants.taken(grant);
    const bind = (active: ActiveJob): void => {
      this.#board.replace(slotId, grant, active);
      active.ahead = this.#board.ahead(slotId, active)?.left ?? Promise.resolve();
    };
    return await this.#desk.take(slotId, { grant, job, bind });
  }

  /** Why the job is not one that this grant is for. */
  #misfit({ slotId, grant }: { slotId: string; grant: { model: ModelId } }, { request }: Job): string | undefined {
    const model = this.#options.residency.slots.find((slot) => slot.slotId === slotId)?.model;
    if (request.model !== grant.model) return `The grant is for ${grant.model}, the job for ${request.model}.`;
    if (model?.capabilities.includes(request.kind) !== true) return `${grant.model} cannot ${request.kind}.`;
    // A bridge has looked at this; who is no bridge of ours must not hold a GPU for hours with one job.
    const { maxMegapixels } = model.profile;
    const isTooLarge = request.kind === 'generate' && megapixelsOf(request) > maxMegapixels;
    return isTooLarge ? `${grant.model} makes at most ${maxMegapixels} megapixels.` : undefined;
  }

  #started(slotId: string, { startedMs = performance.now(), grantedMs, bringsModelIn, isLead }: ActiveJob): void {
    if (bringsModelIn) this.#memory = rememberTurn(this.#memory, slotId, startedMs);
    else if (!isLead) {
      const tookMs = Math.min(LEAD.mostMs, startedMs - grantedMs);
      this.#leadMs = this.#leadMs === 0 ? tookMs : this.#leadMs * 0.8 + tookMs * 0.2;
    }
    this.kick();
  }

  #notify(tokenId: string, notification: Notification): void {
    for (const session of this.#sessions) if (session.tokenId === tokenId) session.notify(notification);
  }
}
