import { performance } from 'node:perf_hooks';
import { pause } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { ErrorCode } from '../../shared/errors.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, Method, Notification, Params, Result } from '../../shared/protocol.ts';
import { AgentTransfers } from './agent-transfers.ts';
import type { BridgeTimes, HostConfig, HostView, LinkState } from './host-view.ts';
import { sameAgent } from './link-errors.ts';
import type { SessionEnd } from './link-session.ts';
import { LinkSession } from './link-session.ts';

/** What a link tells its fleet. All calls are made in the order of the frames, one frame at a time. */
export type LinkListener = {
  /** The state or the snapshot changed. */
  onChange: () => void;
  /** The jobs of this token that the agent has; before anything else of this session. */
  onHello: (jobs: AgentJob[]) => void;
  onNotification: (notification: Notification) => void;
  /** A session that had said hello ended. */
  onDown: () => void;
};

type LinkOptions = {
  host: HostConfig;
  bridgeId: string;
  clientName: () => string;
  times: BridgeTimes;
  log: Log;
  /** The name under which the agent that runs as this epoch is connected already. */
  twinOf: (epoch: string) => string | undefined;
  listener: LinkListener;
};

const MENDED_BY_PEOPLE: ReadonlySet<ErrorCode> = new Set(['AUTH_FAILED', 'VERSION_MISMATCH', 'INVALID_ARGUMENT']);

/**
 * One agent: connect, hello, snapshot and deltas, heartbeat both ways, and again with back-off, until disposed. With
 * link-session.ts and agent-transfers.ts the only part of the bridge that knows that a link is a WebSocket with HTTP
 * beside it.
 */
export class AgentLink implements AsyncDisposable {
  readonly #options: LinkOptions;
  readonly #stop = new AbortController();
  /** Resolves when the link has ended for good; never rejects. */
  readonly done: Promise<void>;
  /** Images and inputs, which travel beside the link. */
  readonly transfers: AgentTransfers;
  #state: LinkState = { kind: 'connecting' };
  /** With the address of the last connection, where that is found out. */
  #host: HostConfig;
  #downAtMs = 0;
  /** Of the agent's last hello: one run of one agent, whatever name and address lead to it. */
  #epoch: string | undefined;
  #session: LinkSession | undefined;
  #snapshot: HostSnapshot | undefined;
  #snapshotAtMs = 0;
  #lastHeardMs: number;
  #hasSettled = false;
  /** How often in a row the same kind of frame closed the link. */
  #invalidFrames = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#host = options.host;
    this.transfers = new AgentTransfers(() => this.#host);
    this.#lastHeardMs = performance.now();
    this.done = this.#run(this.#stop.signal);
  }

  get name(): string {
    return this.#options.host.name;
  }

  get isUp(): boolean {
    return this.#state.kind === 'up';
  }

  /** Of the agent that is connected now. */
  get epoch(): string | undefined {
    return this.isUp ? this.#epoch : undefined;
  }

  /** True once it was up with a snapshot, or failed. */
  get hasSettled(): boolean {
    return this.#hasSettled;
  }

  /** Nothing came of it yet, and its address has to be made first: a process that starts takes longer than a connection. */
  get isReaching(): boolean {
    return this.#options.host.reach !== undefined && !this.#hasSettled;
  }

  /** Monotonic time of the last frame of any kind. */
  get lastHeardMs(): number {
    return this.#lastHeardMs;
  }

  view(): HostView {
    const nowMs = performance.now();
    const link: LinkState =
      this.#state.kind === 'down'
        ? { ...this.#state, retryInMs: Math.max(0, Math.round(this.#state.retryInMs - (nowMs - this.#downAtMs))) }
        : this.#state;
    return {
      name: this.name,
      url: this.#options.host.url,
      link,
      snapshot: this.#snapshot,
      statusAgeMs: this.#snapshot === undefined ? 0 : Math.round(nowMs - this.#snapshotAtMs),
      transferMs: this.transfers.usualMs,
    };
  }

  /** Fails with AGENT_UNREACHABLE when the link is down or ends, TIMEOUT, the agent's own error, or the signal's reason. */
  async request<M extends Method>(method: M, params: Params<M>, signal: AbortSignal): Promise<Result<M>> {
    if (this.#session === undefined || !this.isUp) throw this.#notUp();
    return await this.#session.request(method, params, signal);
  }

  /** Ends this session and connects anew, so that hello tells what is true. */
  restart(reason: string): void {
    this.#session?.end(new AppError('AGENT_UNREACHABLE', `The link to ${this.name} is set up anew: ${reason}.`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#session?.end(new AppError('AGENT_UNREACHABLE', `The link to ${this.name} was closed by this bridge.`));
    await this.done;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { times, log } = this.#options;
    for (let failures = 0; !signal.aborted;) {
      const unreached = await this.#reach(signal);
      if (signal.aborted) break;
      const ended = unreached ?? this.#stillTwin() ?? (await this.#connect());
      const wasUp = this.isUp;
      if (signal.aborted) break;
      this.#invalidFrames = ended.isInvalidFrame ? this.#invalidFrames + 1 : 0;
      if (ended.upMs >= times.silenceMs) failures = 0;
      failures += 1;
      const retryInMs = ended.isAtOnce && failures < 3 ? 0 : this.#retryInMs(ended.error, failures);
      this.#downAtMs = performance.now();
      this.#hasSettled = retryInMs > 0; // one that is tried at once is about to be up, or to say why not
      this.#enter({ kind: 'down', error: ended.error, retryInMs });
      log.info({ event: 'link-down', host: this.name, code: ended.error.code, why: ended.error.message, retryInMs });
      // Transfers of a host that is not there would hang on until their own, longer time is over.
      if (ended.isSilent) this.transfers.giveUp(ended.error);
      if (wasUp) this.#options.listener.onDown();
      await pause(retryInMs, signal);
    }
    this.#session = undefined;
  }

  /** Undefined when the address is known. */
  async #reach(signal: AbortSignal): Promise<SessionEnd | undefined> {
    const { host } = this.#options;
    if (host.reach === undefined) return undefined;
    try {
      this.#host = { ...host, ...(await host.reach(signal)) };
      return undefined;
    } catch (failure) {
      const error = toAppError(failure, 'AGENT_UNREACHABLE');
      return { error, upMs: 0, isAtOnce: false, isInvalidFrame: false, isSilent: false };
    }
  }

  /** An agent may end one link for the other, so a connection is not even tried while the other is there. */
  #stillTwin(): SessionEnd | undefined {
    const error = this.#twinError();
    return error && { error, upMs: 0, isAtOnce: false, isInvalidFrame: false, isSilent: false };
  }

  /** One agent has one link, or its slots would count twice and its jobs look like strays. */
  #twinError(): AppError | undefined {
    const twin = this.#epoch === undefined ? undefined : this.#options.twinOf(this.#epoch);
    return twin === undefined ? undefined : sameAgent(this.#options.host, twin);
  }

  /** One session, to its end. */
  async #connect(): Promise<SessionEnd> {
    this.#session = new LinkSession({
      ...this.#options,
      host: this.#host,
      onFrame: () => {
        this.#lastHeardMs = performance.now();
      },
      onLatency: (latencyMs) => {
        if (this.#state.kind === 'up') this.#state = { kind: 'up', latencyMs };
      },
      onHello: ({ epoch, jobs }, latencyMs) => {
        this.#epoch = epoch;
        const twin = this.#twinError();
        if (twin !== undefined) return this.#session?.end(twin, { isAtOnce: false });
        this.#enter({ kind: 'up', latencyMs });
        this.#options.listener.onHello(jobs);
      },
      onNotification: (notification) => this.#onNotification(notification),
    });
    const ended = await this.#session.done;
    this.#session = undefined;
    return ended;
  }

  /** What a person must mend is tried slowly; a frame that closed the link twice slower still. */
  #retryInMs(error: AppError, failures: number): number {
    const { times } = this.#options;
    if (this.#invalidFrames >= 2) return 2 * times.reconnectMaxMs;
    if (MENDED_BY_PEOPLE.has(error.code)) return times.reconnectMaxMs;
    return backoffMs(failures, {
      firstMs: times.reconnectFirstMs,
      maxMs: times.reconnectMaxMs,
      random: Math.random(),
    });
  }

  #onNotification(notification: Notification): void {
    if (notification.method === 'snapshot') this.#setSnapshot(notification.params.snapshot);
    else if (notification.method === 'delta') {
      if (this.#snapshot === undefined) throw new Error('a delta before the first snapshot passed the session');
      this.#setSnapshot(Object.assign({}, this.#snapshot, notification.params.changed));
    } else this.#options.listener.onNotification(notification);
  }

  #setSnapshot(snapshot: HostSnapshot): void {
    this.#snapshot = snapshot;
    this.#snapshotAtMs = performance.now();
    this.#hasSettled = true;
    this.#options.listener.onChange();
  }

  #enter(state: LinkState): void {
    this.#state = state;
    if (state.kind === 'up') this.#options.log.info({ event: 'link-up', host: this.name, latencyMs: state.latencyMs });
    this.#options.listener.onChange();
  }

  #notUp(): AppError {
    if (this.#state.kind === 'down') return this.#state.error;
    return new AppError('AGENT_UNREACHABLE', `${this.name} is not connected yet. Try again in a moment.`);
  }
}
