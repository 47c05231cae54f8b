import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { performance } from 'node:perf_hooks';
import { WebSocket } from 'ws';
import type { RawData } from 'ws';
import { Deadline, pause } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError, isErrorCode, toAppError } from '../../shared/errors.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import { fetchBody, openHttp, readBody } from '../../shared/http-client.ts';
import type { HttpAnswer } from '../../shared/http-client.ts';
import { JobError } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import {
  CLOSE_CODES,
  Frame,
  LIMITS,
  METHOD_NOT_FOUND,
  parseNotification,
  PROTOCOL_VERSION,
  REQUESTS,
  SUBPROTOCOL,
  WS_PATH,
} from '../../shared/protocol.ts';
import type { AgentJob, Method, Notification, Params, Result } from '../../shared/protocol.ts';
import type { BridgeTimes, HostConfig, HostView, LinkState } from './host-view.ts';
import { PendingRequests } from './pending-requests.ts';

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
  listener: LinkListener;
};

const CONNECT_MS = 10_000;
const ANSWER_MS = 15_000;
/** The agent itself answers model moves after 40 s. */
const MOVE_ANSWER_MS = 60_000;
/** A timer this late means that the laptop slept: the peer may be long gone. */
const SLEPT_MS = 20_000;
const AWAKE_ANSWER_MS = 5_000;
/** The slowest transfer that is waited for. */
const SLOWEST_BYTES_PER_S = 20_000;
const MAX_PREVIEW_BYTES = 4 * 1024 * 1024;

/**
 * One agent: connect, hello, snapshot and deltas, heartbeat both ways, and again with back-off, until disposed. The only
 * part of the bridge that knows that a link is a WebSocket with HTTP beside it.
 */
export class AgentLink implements AsyncDisposable {
  readonly #options: LinkOptions;
  readonly #stop = new AbortController();
  readonly #httpUrl: string;
  /** Resolves when the link has ended for good; never rejects. */
  readonly done: Promise<void>;
  #state: LinkState = { kind: 'connecting' };
  #downAtMs = 0;
  #session: Session | undefined;
  #snapshot: HostSnapshot | undefined;
  #snapshotAtMs = 0;
  #lastHeardMs: number;
  #transferMs = 0;
  #hasSettled = false;
  /** How often in a row the same kind of frame closed the link. */
  #invalidFrames = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#httpUrl = options.host.url.replace(/^ws/, 'http').replace(/\/$/, '');
    this.#lastHeardMs = performance.now();
    this.done = this.#run(this.#stop.signal);
  }

  get name(): string {
    return this.#options.host.name;
  }

  get isUp(): boolean {
    return this.#state.kind === 'up';
  }

  /** True once it was up with a snapshot, or failed. */
  get hasSettled(): boolean {
    return this.#hasSettled;
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
      transferMs: this.#transferMs,
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

  /** The stored image. The caller reads or destroys the body. */
  async openResult(jobId: string, o: { bytes: number; signal: AbortSignal }): Promise<HttpAnswer> {
    const answer = await openHttp(`${this.#httpUrl}/v1/results/${jobId}`, {
      ...this.#httpOptions(o.signal, o.bytes),
    }).catch((error: unknown) => this.#throwHttp(error, o.signal));
    if (answer.status !== 200) throw await this.#refusal(answer);
    return answer;
  }

  async fetchPreview(jobId: string, signal: AbortSignal): Promise<Buffer> {
    const answer = await fetchBody(`${this.#httpUrl}/v1/results/${jobId}/preview`, {
      ...this.#httpOptions(signal, MAX_PREVIEW_BYTES),
      maxBytes: MAX_PREVIEW_BYTES,
    }).catch((error: unknown) => this.#throwHttp(error, signal));
    if (answer.status !== 200) throw this.#httpError(answer.status, answer.body);
    return answer.body;
  }

  async uploadInput(sha256: string, o: { path: string; signal: AbortSignal }): Promise<void> {
    const { size } = await stat(o.path).catch((error: unknown) => {
      throw new AppError('INPUT_INVALID', `The input image ${o.path} cannot be read: ${textOf(error)}.`, {
        cause: error,
      });
    });
    const answer = await fetchBody(`${this.#httpUrl}/v1/inputs/${sha256}`, {
      ...this.#httpOptions(o.signal, size),
      method: 'PUT',
      headers: { ...this.#authorization(), 'content-length': size, 'content-type': 'application/octet-stream' },
      body: createReadStream(o.path),
      maxBytes: 64 * 1024,
    }).catch((error: unknown) => this.#throwHttp(error, o.signal));
    if (answer.status < 200 || answer.status > 299) throw this.#httpError(answer.status, answer.body);
  }

  /** One more result came: the average follows the network slowly. */
  noteTransfer(ms: number): void {
    this.#transferMs = this.#transferMs === 0 ? ms : this.#transferMs * 0.8 + ms * 0.2;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#session?.end(new AppError('AGENT_UNREACHABLE', `The link to ${this.name} was closed by this bridge.`));
    await this.done;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { times, log } = this.#options;
    for (let failures = 0; !signal.aborted;) {
      const session = new Session({
        ...this.#options,
        onFrame: () => {
          this.#lastHeardMs = performance.now();
        },
        onLatency: (latencyMs) => {
          if (this.#state.kind === 'up') this.#state = { kind: 'up', latencyMs };
        },
        onHello: (jobs, latencyMs) => {
          this.#enter({ kind: 'up', latencyMs });
          this.#options.listener.onHello(jobs);
        },
        onNotification: (notification) => this.#onNotification(notification),
      });
      this.#session = session;
      const ended = await session.done;
      this.#session = undefined;
      const wasUp = this.isUp;
      if (signal.aborted) break;
      this.#invalidFrames = ended.isInvalidFrame ? this.#invalidFrames + 1 : 0;
      if (ended.upMs >= times.silenceMs) failures = 0;
      failures += 1;
      const retryInMs = ended.isAtOnce && failures < 3 ? 0 : this.#retryInMs(ended.error, failures);
      this.#downAtMs = performance.now();
      this.#hasSettled = true;
      this.#enter({ kind: 'down', error: ended.error, retryInMs });
      log.info({ event: 'link-down', host: this.name, code: ended.error.code, why: ended.error.message, retryInMs });
      if (wasUp) this.#options.listener.onDown();
      await pause(retryInMs, signal);
    }
    this.#session = undefined;
  }

  /** What a person must mend is tried slowly; a frame that closed the link twice slower still. */
  #retryInMs(error: AppError, failures: number): number {
    const { times } = this.#options;
    if (this.#invalidFrames >= 2) return 2 * times.reconnectMaxMs;
    if (error.code === 'AUTH_FAILED' || error.code === 'VERSION_MISMATCH') return times.reconnectMaxMs;
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

  #authorization(): { authorization: string } {
    return { authorization: `Bearer ${this.#options.host.token}` };
  }

  #httpOptions(signal: AbortSignal, bytes: number) {
    const { tls } = this.#options.host;
    const deadlineMs = 30_000 + (bytes / SLOWEST_BYTES_PER_S) * 1000;
    return { headers: this.#authorization(), signal, deadlineMs, ...(tls !== undefined && { tls }) };
  }

  #throwHttp(error: unknown, signal: AbortSignal): never {
    if (signal.aborted) throw error;
    throw new AppError('AGENT_UNREACHABLE', `A transfer with ${this.name} failed: ${textOf(error)}.`, { cause: error });
  }

  async #refusal(answer: HttpAnswer): Promise<AppError> {
    return this.#httpError(answer.status, await readBody(answer, { maxBytes: 64 * 1024 }).catch(() => Buffer.alloc(0)));
  }

  #httpError(status: number, body: Buffer): AppError {
    const said = parseError(body);
    if (said !== undefined) return said;
    if (status === 401) return authFailed(this.#options.host);
    if (status === 404) return new AppError('JOB_NOT_FOUND', `${this.name} does not have it (any more).`);
    return new AppError('AGENT_UNREACHABLE', `${this.name} answered HTTP ${status} to a transfer.`);
  }
}

type SessionOptions = Omit<LinkOptions, 'listener'> & {
  onFrame: () => void;
  onLatency: (ms: number) => void;
  onHello: (jobs: AgentJob[], latencyMs: number) => void;
  onNotification: (notification: Notification) => void;
};

type SessionEnd = { error: AppError; upMs: number; isAtOnce: boolean; isInvalidFrame: boolean };

/** One WebSocket connection, from connect to its end. */
class Session {
  readonly #options: SessionOptions;
  readonly #socket: WebSocket;
  readonly #pending = new PendingRequests({ limit: LIMITS.requestsInFlight.value });
  readonly #life = new AbortController();
  readonly done: Promise<SessionEnd>;
  #why: Omit<SessionEnd, 'upMs'> | undefined;
  #upAtMs: number | undefined;
  #revision: number | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    const { host } = options;
    this.#socket = new WebSocket(`${host.url.replace(/\/$/, '')}${WS_PATH}`, SUBPROTOCOL, {
      headers: { authorization: `Bearer ${host.token}` },
      maxPayload: LIMITS.frameBytes.value,
      perMessageDeflate: false,
      handshakeTimeout: CONNECT_MS,
      // One frame per turn of the event loop: who awaited a reply goes on before the next frame is read.
      allowSynchronousEvents: false,
      ...host.tls,
    });
    this.done = this.#run();
  }

  async request<M extends Method>(method: M, params: Params<M>, signal: AbortSignal): Promise<Result<M>> {
    const result = await this.#pending.add({
      what: `${method} to ${this.#options.host.name}`,
      deadlineMs: method.startsWith('model.') ? MOVE_ANSWER_MS : ANSWER_MS,
      signal,
      send: (id) => this.#send({ jsonrpc: '2.0', id, method, params }),
    });
    const parsed = REQUESTS[method].result.safeParse(result);
    if (parsed.success) return parsed.data as Result<M>; // the table pairs the method with this schema
    this.#endInvalid(`result of ${method}: ${parsed.error.message}`);
    throw new AppError('INTERNAL', `${this.#options.host.name} answered ${method} with something else than agreed.`);
  }

  /** The first reason stays. */
  end(error: AppError, o: { isAtOnce?: boolean; isInvalidFrame?: boolean; closeCode?: number } = {}): void {
    if (this.#why !== undefined) return;
    this.#why = { error, isAtOnce: o.isAtOnce ?? true, isInvalidFrame: o.isInvalidFrame ?? false };
    this.#pending.end(error);
    this.#life.abort();
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.close(o.closeCode ?? 1000);
    else this.#socket.terminate();
  }

  async #run(): Promise<SessionEnd> {
    const { host, times } = this.#options;
    const closed = new Promise<void>((resolve) => {
      this.#socket.once('close', () => resolve());
    });
    this.#socket.on('unexpected-response', (request, response) => {
      this.end(refused(host, response.statusCode ?? 0), { isAtOnce: false });
      response.resume();
      request.destroy();
    });
    this.#socket.on('error', (error) => this.end(unreachable(host, textOf(error)), { isAtOnce: false }));
    this.#socket.on('close', (code, reason) => this.#onClose(code, reason.toString('utf8')));
    using silence = new Deadline({ ms: Math.max(times.silenceMs, 1), signal: this.#life.signal });
    const heard = (): void => {
      silence.restart();
      this.#options.onFrame();
    };
    silence.signal.addEventListener('abort', () => {
      if (!silence.isExpired) return;
      this.end(unreachable(host, `it was silent for ${times.silenceMs} ms`), { isAtOnce: false });
      this.#socket.terminate(); // a dead peer answers no closing handshake
    });
    this.#socket.on('message', (data, isBinary) => {
      heard();
      this.#onMessage(data, isBinary);
    });
    this.#socket.on('ping', heard);
    this.#socket.on('pong', heard);
    this.#socket.once('open', () => {
      heard();
      this.#hello().catch((error: unknown) => this.end(toAppError(error), { isAtOnce: false }));
    });
    const beating = this.#beat();
    await once(this.#life.signal);
    using patience = new Deadline({ ms: 1_000 });
    patience.signal.addEventListener('abort', () => this.#socket.terminate(), { once: true });
    await closed;
    await beating;
    const why = this.#why ?? { error: unreachable(host, 'it ended'), isAtOnce: true, isInvalidFrame: false };
    return { ...why, upMs: this.#upAtMs === undefined ? 0 : performance.now() - this.#upAtMs };
  }

  async #hello(): Promise<void> {
    const { bridgeId, clientName, onHello } = this.#options;
    const sentMs = performance.now();
    const { jobs } = await this.request(
      'hello',
      { version: PROTOCOL_VERSION, bridgeId, name: clientName().slice(0, 100) },
      this.#life.signal,
    );
    this.#upAtMs = performance.now();
    onHello(jobs, Math.round(this.#upAtMs - sentMs));
  }

  /** Pings, and finds out after a sleep of the laptop within seconds whether the peer is still there. */
  async #beat(): Promise<void> {
    const { times, host, onLatency } = this.#options;
    const { signal } = this.#life;
    let pingedMs: number | undefined;
    let heardPong = true;
    this.#socket.on('pong', () => {
      heardPong = true;
      if (pingedMs !== undefined) onLatency(Math.round(performance.now() - pingedMs));
      pingedMs = undefined;
    });
    while (!signal.aborted) {
      const [wallMs, monotonicMs] = [Date.now(), performance.now()];
      await pause(times.pingEveryMs, signal);
      if (signal.aborted || this.#socket.readyState !== WebSocket.OPEN) continue;
      // Only the wall clock counts while a laptop sleeps, on most systems; set by hand it merely causes one more ping.
      const lateMs = Math.max(Date.now() - wallMs, performance.now() - monotonicMs) - times.pingEveryMs;
      heardPong = false;
      pingedMs = performance.now();
      this.#socket.ping();
      if (lateMs < SLEPT_MS) continue;
      await pause(AWAKE_ANSWER_MS, signal);
      if (!signal.aborted && !heardPong) {
        this.end(unreachable(host, 'this machine slept, and the link did not survive it'));
        this.#socket.terminate();
      }
    }
  }

  #onMessage(data: RawData, isBinary: boolean): void {
    if (this.#why !== undefined) return;
    const text = Buffer.isBuffer(data) ? data.toString('utf8') : '';
    const frame = Frame.safeParse(isBinary ? undefined : parseJson(text));
    if (!frame.success) return this.#endInvalid(frame.error.message);
    if ('method' in frame.data) {
      if ('id' in frame.data) this.#refuseRequest(frame.data.id, frame.data.method);
      else this.#onNotification(frame.data.method, frame.data.params);
    } else if ('error' in frame.data) {
      const { code, message } = frame.data.error.data;
      this.#pending.reject(frame.data.id, new AppError(isErrorCode(code) ? code : 'INTERNAL', message));
    } else this.#pending.resolve(frame.data.id, frame.data.result);
  }

  #onNotification(method: string, params: unknown): void {
    let notification: Notification | undefined;
    try {
      notification = parseNotification(method, params);
    } catch (error) {
      this.#endInvalid(`${method}: ${textOf(error)}`);
      return;
    }
    if (notification === undefined) return; // a newer agent's; ignored
    if (notification.method === 'snapshot') this.#revision = notification.params.revision;
    if (notification.method === 'delta') {
      if (this.#revision === undefined || notification.params.revision !== this.#revision + 1) {
        this.end(unreachable(this.#options.host, 'a status frame is missing, so all is asked anew'));
        return;
      }
      this.#revision = notification.params.revision;
    }
    this.#options.onNotification(notification);
  }

  #refuseRequest(id: number, method: string): void {
    const message = `A bridge does not answer ${method}.`;
    const data = { code: 'INVALID_ARGUMENT', message, retryable: false };
    this.#send({ jsonrpc: '2.0', id, error: { code: METHOD_NOT_FOUND, message, data } });
  }

  #endInvalid(why: string): void {
    const { host, log } = this.#options;
    log.warn({ event: 'invalid-frame', host: host.name, why });
    const error = new AppError(
      'VERSION_MISMATCH',
      `${host.name} sent a frame that this bridge does not understand. Use the same release on both sides.`,
    );
    this.end(error, { isAtOnce: false, isInvalidFrame: true, closeCode: CLOSE_CODES.INVALID_FRAME.code });
  }

  #onClose(code: number, reason: string): void {
    const { host } = this.#options;
    const said = reason === '' ? '' : `: ${reason}`;
    if (code === CLOSE_CODES.AUTH_REVOKED.code) return this.end(authFailed(host), { isAtOnce: false });
    if (code === CLOSE_CODES.VERSION_MISMATCH.code) {
      return this.end(
        new AppError(
          'VERSION_MISMATCH',
          `${host.name} speaks another version of the protocol${said}. Use the same release on both sides.`,
        ),
        { isAtOnce: false },
      );
    }
    return this.end(unreachable(host, `the connection was closed (${code}${said})`), { isAtOnce: false });
  }

  #send(frame: Frame): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }
}

function unreachable(host: HostConfig, why: string): AppError {
  return new AppError(
    'AGENT_UNREACHABLE',
    `No connection to ${host.name} at ${host.url}: ${why}. It is tried again by itself; check that gantry-agent runs there.`,
  );
}

function refused(host: HostConfig, status: number): AppError {
  if (status === 401 || status === 403) return authFailed(host);
  if (status === 429) return new AppError('RATE_LIMITED', `${host.name} refused the connection: too many tries.`);
  return unreachable(host, `it answered HTTP ${status} instead of opening a link`);
}

function authFailed(host: HostConfig): AppError {
  return new AppError(
    'AUTH_FAILED',
    `${host.name} refused the token of this bridge. Make a new one there with "gantry-agent tokens add" and put it into bridge.yaml.`,
  );
}

function parseError(body: Buffer): AppError | undefined {
  const json = parseJson(body.toString('utf8'));
  const parsed = JobError.safeParse(json);
  if (!parsed.success || !isErrorCode(parsed.data.code)) return undefined;
  return new AppError(parsed.data.code, parsed.data.message);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // matches no schema, and is treated as an invalid frame or answer
  }
}

function textOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof AggregateError && error.message === '') return error.errors.map(textOf).join('; ');
  return error.message === '' && 'code' in error ? String(error.code) : error.message;
}

/** Resolves at the abort. */
async function once(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
