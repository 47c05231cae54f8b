import { randomUUID } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { AppError } from '../../shared/errors.ts';
import type { OfferedWork, SlotStatus } from '../../shared/host-snapshot.ts';
import type { Job, ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, ModelMove, Notification, OfferLine, Params, Result, Role } from '../../shared/protocol.ts';
import type { ActiveJob } from './active-job.ts';
import { Alarm } from './alarm.ts';
import type { InputStore } from './input-store.ts';
import { JobDesk } from './job-desk.ts';
import type { Journal } from './journal.ts';
import { LoadWishes } from './load-wishes.ts';
import { OfferBook } from './offer-book.ts';
import type { ResultStore } from './result-store.ts';
import type { Servers } from './servers.ts';
import type { OpenGrant } from './slot-board.ts';
import { SlotBoard } from './slot-board.ts';
import type { ChoiceView, Grant, LineView } from './slot-scheduler.ts';
import { choose } from './slot-scheduler.ts';
import type { TurnMemory } from './turn-memory.ts';
import { EMPTY_MEMORY, rememberRefusal, rememberRun, rememberTurn } from './turn-memory.ts';

export type TokenRef = { id: string; role: Role };

export type ExchangeOptions = {
  residency: Servers;
  journal: Journal;
  results: ResultStore;
  inputs: InputStore;
  times: { grantMs: number; inputSilenceMs: number; turnMs: number; moveAnswerMs: number };
  isSimulated: () => boolean;
  hostname: string;
  log: Log;
  onChange: () => void;
};

type SessionOptions = {
  token: TokenRef;
  bridgeId: string;
  notify: (notification: Notification) => void;
  /** A newer session of the same bridge came. */
  onReplaced: () => void;
};

/** At most this long before the end of a running job the next one may be granted. */
const LEAD_MS = 2_000;
/** How often a disk that refused a line is tried again. */
const PROBE_EVERY_MS = 2_000;

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
  readonly #closing = new AbortController();
  readonly #alarm = new Alarm();
  #memory: TurnMemory = EMPTY_MEMORY;
  #closed: ReadonlyMap<string, ModelId> = new Map();
  #leadMs = 0;
  #probing: Promise<void> = Promise.resolve();
  #isDraining = false;
  #isStopping = false;
  #isChoosing = false;
  #mustChooseAgain = false;

  constructor(options: ExchangeOptions) {
    this.#options = options;
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
      onServed: (tokenId, runMs) => (this.#memory = rememberRun(this.#memory, tokenId, runMs)),
      onLeft: (slotId, active) => {
        this.#board.leave(slotId, active);
        this.kick();
      },
      onChange: () => this.kick(),
    });
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
      decline: (grantId) => this.#decline(session, grantId),
      kick: () => this.kick(),
    });
    this.#sessions.add(session);
    return session;
  }

  /** The state of every slot, by its id. */
  slots(): Map<string, SlotStatus> {
    const reason = this.refusal;
    return new Map(
      this.#board.slotIds().map((slotId) => {
        const isLeaving = this.#wishes.isLeaving(slotId);
        return [slotId, this.#board.status(slotId, { reason, isLeaving, dueModel: this.#closed.get(slotId) })];
      }),
    );
  }

  /** What all sessions offer, as counts. */
  offered(): OfferedWork[] {
    return this.#offers.counts();
  }

  get isDraining(): boolean {
    return this.#isDraining || this.#isStopping;
  }

  /** Why no slot of this host gives grants; undefined when they do. */
  get refusal(): string | undefined {
    if (this.#isStopping) return 'The agent is stopping.';
    if (this.#isDraining) return 'The host is draining.';
    return this.#options.journal.failure?.message;
  }

  /** No grants; running jobs end. */
  drain(): void {
    this.#isDraining = true;
    this.kick();
  }

  resume(): void {
    this.#isDraining = false;
    this.kick();
  }

  /** A person's load, offload or release. A load waits for its turn like an interactive job without a job. */
  async move(model: ModelId, to: 'load' | 'offload' | 'release', signal: AbortSignal): Promise<ModelMove> {
    return await this.#wishes.move(model, to, signal);
  }

  inputArrived(tokenId: string, sha256: string): void {
    this.#options.inputs.arrived(tokenId, sha256);
  }

  /** Something changed outside, as at the end of a transition: choose again. */
  kick(): void {
    this.#mustChooseAgain = true;
    if (this.#isChoosing) return;
    this.#isChoosing = true;
    try {
      while (this.#mustChooseAgain) {
        this.#mustChooseAgain = false;
        this.#choose();
      }
    } finally {
      this.#isChoosing = false;
    }
    this.#options.onChange();
  }

  /** Ends everything of a token that was revoked: sessions, grants, jobs, results, inputs. */
  async forget(tokenId: string): Promise<void> {
    for (const session of [...this.#sessions]) if (session.tokenId === tokenId) session.close();
    await this.#desk.forget(tokenId);
  }

  /** No grants; running jobs have their grace, then they end as INTERRUPTED. */
  async shutdown(grace: { jobGraceMs: number }): Promise<void> {
    this.#isStopping = true;
    for (const { slotId, grant } of this.#board.grants()) this.#withdraw(slotId, grant);
    this.kick();
    await this.#desk.shutdown(grace);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown({ jobGraceMs: 0 });
    this.#closing.abort();
    this.#alarm.clear();
    for (const session of [...this.#sessions]) session.close();
    await this.#probing;
    await this.#desk[Symbol.asyncDispose]();
  }

  #choose(): void {
    if (this.#closing.signal.aborted) return;
    const { grants, closed, memory, againInMs } = choose(this.#view(), this.#memory);
    this.#memory = memory;
    this.#closed = closed;
    for (const grant of grants) this.#grant(grant);
    const probeMs = this.#options.journal.failure === undefined ? Infinity : PROBE_EVERY_MS;
    const againMs = Math.min(againInMs ?? Infinity, probeMs);
    if (againMs === Infinity) this.#alarm.clear();
    else this.#alarm.set(Math.max(5, againMs), () => this.#again());
  }

  #again(): void {
    const { journal } = this.#options;
    if (journal.failure === undefined) this.kick();
    else this.#probing = journal.probe().then(() => this.kick());
  }

  #view(): ChoiceView {
    const { times } = this.#options;
    const nowMs = performance.now();
    const reason = this.refusal;
    const lines = [...this.#lines(nowMs), ...this.#wishes.lines(nowMs)];
    const waiting = lines.filter((line) => !line.isDeclined && line.count > 0);
    this.#board.offered = new Set(waiting.map((line) => line.model));
    return {
      nowMs,
      slots: this.#board
        .slotIds()
        .map((slotId) => this.#board.view(slotId, { reason, isLeaving: this.#wishes.isLeaving(slotId) })),
      lines,
      vram: this.#board.vram,
      leadMs: this.#leadMs,
      turnMs: times.turnMs,
    };
  }

  /** The offers of sessions that may have grants now. */
  #lines(nowMs: number): LineView[] {
    const { residency, results } = this.#options;
    const open = new Set(
      [...this.#sessions]
        .filter((each) => !each.isMuted && !results.isFull(each.tokenId))
        .map((each) => each.sessionId),
    );
    return this.#offers
      .lines()
      .filter((line) => open.has(line.sessionId))
      .map(({ lineId, sessionId, tokenId, offer, left, sinceMs, isDeclined }) => ({
        lineId,
        sessionId,
        tokenId,
        model: offer.model,
        class: offer.class,
        count: left,
        workMs: (offer.workMs * Math.max(0, left)) / offer.count,
        inFlight: offer.inFlight,
        waitingMs: nowMs - sinceMs,
        isDeclined,
        wants: this.#board.slotIds(offer.model).map((id) => residency.wantFor(id, { megapixels: offer.maxMegapixels })),
      }));
  }

  #grant({ slotId, line, gpus, startsInMs, isDue, isLead }: Grant): void {
    if (this.#wishes.start(line, { slotId, gpus })) return;
    const session = [...this.#sessions].find((each) => each.sessionId === line.sessionId);
    if (session === undefined) throw new Error('a grant needs a session');
    const grant: OpenGrant = {
      kind: 'grant',
      grantId: randomUUID(),
      sessionId: line.sessionId,
      tokenId: line.tokenId,
      lineId: line.lineId,
      model: line.model,
      class: line.class,
      gpus,
      isDue,
      isLead,
      bringsModelIn: isDue || startsInMs > 0,
      grantedMs: performance.now(),
      expectedMs: line.workMs / Math.max(1, line.count),
      alarm: new Alarm(),
    };
    this.#board.enter(slotId, grant);
    this.#offers.granted(line.lineId, grant.grantedMs);
    grant.alarm.set(this.#options.times.grantMs, () => this.#expire(slotId, grant));
    session.notify({
      method: 'slot.grant',
      params: { grantId: grant.grantId, slotId, model: line.model, class: line.class, startsInMs },
    });
  }

  #expire(slotId: string, grant: OpenGrant): void {
    this.#options.log.info({ event: 'grant-expired', slotId, grantId: grant.grantId });
    for (const session of this.#sessions) if (session.sessionId === grant.sessionId) session.isMuted = true;
    this.#offers.expired(grant.lineId);
    this.#refused(grant);
    this.#withdraw(slotId, grant);
    this.kick();
  }

  /** Takes a grant back and says so. */
  #withdraw(slotId: string, grant: OpenGrant): void {
    grant.alarm.clear();
    this.#board.leave(slotId, grant);
    for (const session of this.#sessions) {
      if (session.sessionId !== grant.sessionId) continue;
      session.notify({ method: 'slot.revoke', params: { grantId: grant.grantId } });
    }
  }

  #refused(grant: OpenGrant): void {
    if (!grant.isDue) return;
    // 5 s with the standard times.
    const untilMs = performance.now() + this.#options.times.grantMs;
    this.#memory = rememberRefusal(this.#memory, grant.model, untilMs);
  }

  #close(session: Session): void {
    if (!this.#sessions.delete(session)) return;
    this.#offers.remove(session.sessionId);
    for (const { slotId, grant } of this.#board.grants()) {
      if (grant.sessionId !== session.sessionId) continue;
      this.#refused(grant);
      this.#withdraw(slotId, grant);
    }
    this.kick();
  }

  #offer(session: Session, lines: readonly OfferLine[]): void {
    this.#offers.replace(session, lines, performance.now());
    this.kick();
  }

  #decline(session: Session, grantId: string): void {
    const open = this.#openGrant(session, grantId);
    if (open === undefined) return; // it went back already
    open.grant.alarm.clear();
    this.#board.leave(open.slotId, open.grant);
    this.#offers.declined(open.grant.lineId);
    this.#refused(open.grant);
    this.kick();
  }

  #openGrant(session: Session, grantId: string): { slotId: string; grant: OpenGrant } | undefined {
    return this.#board.grants().find(({ grant }) => grant.grantId === grantId && grant.sessionId === session.sessionId);
  }

  async #take(session: Session, { grantId, job }: Params<'job.take'>): Promise<Result<'job.take'>> {
    if (this.#desk.isKnown(session.tokenId, job)) {
      this.#decline(session, grantId);
      return await this.#desk.takeAgain(session.tokenId, job);
    }
    const open = this.#openGrant(session, grantId);
    if (open === undefined) {
      throw new AppError('GRANT_EXPIRED', 'This grant went back before it was taken. The job waits for the next one.');
    }
    const { slotId, grant } = open;
    this.#checkFits(session, { slotId, grant, job });
    grant.alarm.clear();
    const bind = (active: ActiveJob): void => {
      this.#board.replace(slotId, grant, active);
      active.ahead = this.#board.ahead(slotId, active)?.left ?? Promise.resolve();
    };
    return await this.#desk.take(slotId, { grant, job, bind });
  }

  #checkFits(session: Session, { slotId, grant, job }: { slotId: string; grant: OpenGrant; job: Job }): void {
    const model = this.#options.residency.slots.find((slot) => slot.slotId === slotId)?.model;
    const isCapable = model?.capabilities.includes(job.request.kind) === true;
    if (job.request.model === grant.model && isCapable) return;
    this.#decline(session, grant.grantId);
    const why =
      job.request.model === grant.model
        ? `${grant.model} cannot ${job.request.kind}.`
        : `The grant is for ${grant.model}, the job for ${job.request.model}.`;
    throw new AppError('INVALID_ARGUMENT', `${why} The grant went back; the job was not accepted.`);
  }

  #started(slotId: string, { startedMs = performance.now(), grantedMs, bringsModelIn, isLead }: ActiveJob): void {
    if (bringsModelIn) this.#memory = rememberTurn(this.#memory, slotId, startedMs);
    else if (!isLead) {
      const tookMs = Math.min(LEAD_MS, startedMs - grantedMs);
      this.#leadMs = this.#leadMs === 0 ? tookMs : this.#leadMs * 0.8 + tookMs * 0.2;
    }
    this.kick();
  }

  #notify(tokenId: string, notification: Notification): void {
    for (const session of this.#sessions) if (session.tokenId === tokenId) session.notify(notification);
  }
}

/** What a session may ask of the exchange. */
type SessionCalls = {
  desk: JobDesk;
  close(): void;
  offer(lines: readonly OfferLine[]): void;
  take(params: Params<'job.take'>): Promise<Result<'job.take'>>;
  decline(grantId: string): void;
  kick(): void;
};

/** One connected bridge: its offer and its grants end with it, its accepted jobs do not. Everything is under its token. */
export class Session {
  readonly sessionId: string = randomUUID();
  readonly tokenId: string;
  readonly bridgeId: string;
  readonly notify: (notification: Notification) => void;
  readonly onReplaced: () => void;
  /** It let a grant expire: none until its next message. */
  isMuted = false;
  readonly #calls: SessionCalls;

  constructor({ token, bridgeId, notify, onReplaced }: SessionOptions, calls: SessionCalls) {
    this.tokenId = token.id;
    this.bridgeId = bridgeId;
    this.notify = notify;
    this.onReplaced = onReplaced;
    this.#calls = calls;
  }

  jobs(): AgentJob[] {
    return this.#calls.desk.jobs(this.tokenId);
  }

  offer(lines: OfferLine[]): void {
    this.#calls.offer(lines);
  }

  async take(params: Params<'job.take'>): Promise<Result<'job.take'>> {
    return await this.#calls.take(params);
  }

  decline(grantId: string): void {
    this.#calls.decline(grantId);
  }

  async cancel(jobId: string): Promise<AgentJob> {
    return await this.#calls.desk.cancel(this.tokenId, jobId);
  }

  get(jobId: string): AgentJob {
    return this.#calls.desk.get(this.tokenId, jobId);
  }

  async ack(params: Params<'job.ack'>): Promise<void> {
    await this.#calls.desk.ack(this.tokenId, params);
    this.#calls.kick(); // a token over its quota may have grants again
  }

  /** Any message shows that the bridge is there. */
  touch(): void {
    if (!this.isMuted) return;
    this.isMuted = false;
    this.#calls.kick();
  }

  close(): void {
    this.#calls.close();
  }
}
