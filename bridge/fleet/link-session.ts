import { performance } from 'node:perf_hooks';
import { WebSocket } from 'ws';
import type { RawData } from 'ws';
import { Deadline, pause } from '../../shared/abort.ts';
import { AppError, isErrorCode, toAppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  CLOSE_CODES,
  Frame,
  METHOD_NOT_FOUND,
  parseNotification,
  PROTOCOL_VERSION,
  REQUESTS,
  SUBPROTOCOL,
  WS_PATH,
} from '../../shared/protocol.ts';
import type { Method, Notification, Params, Result } from '../../shared/protocol.ts';
import type { BridgeTimes, HostConfig } from './host-view.ts';
import { authFailed, notConnected, parseJson, refused, textOf, unreachable } from './link-errors.ts';
import { PendingRequests } from './pending-requests.ts';

const CONNECT_MS = 10_000;
const ANSWER_MS = 15_000;
/** The agent itself answers model moves after 40 s. */
const MOVE_ANSWER_MS = 60_000;
/** A timer this late means that the laptop slept: the peer may be long gone. */
const SLEPT_MS = 20_000;
const AWAKE_ANSWER_MS = 5_000;

export type SessionOptions = {
  host: HostConfig;
  bridgeId: string;
  clientName: () => string;
  times: BridgeTimes;
  log: Log;
  onFrame: () => void;
  onLatency: (ms: number) => void;
  onHello: (hello: Result<'hello'>, latencyMs: number) => void;
  onNotification: (notification: Notification) => void;
};

/**
 * Why and after how long a session ended. `isAtOnce`: nothing is wrong with the host, so connect again at once. `isSilent`:
 * nothing at all came from it any more.
 */
export type SessionEnd = {
  error: AppError;
  upMs: number;
  isAtOnce: boolean;
  isInvalidFrame: boolean;
  isSilent: boolean;
};

/** One WebSocket connection, from connect to its end. */
export class LinkSession {
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
  end(
    error: AppError,
    o: { isAtOnce?: boolean; isInvalidFrame?: boolean; isSilent?: boolean; closeCode?: number } = {},
  ): void {
    if (this.#why !== undefined) return;
    const { isAtOnce = true, isInvalidFrame = false, isSilent = false } = o;
    this.#why = { error, isAtOnce, isInvalidFrame, isSilent };
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
    this.#socket.on('error', (error) => this.end(notConnected(host, error), { isAtOnce: false }));
    this.#socket.on('close', (code, reason) => this.#onClose(code, reason.toString('utf8')));
    using silence = new Deadline({ ms: Math.max(times.silenceMs, 1), signal: this.#life.signal });
    const heard = (): void => {
      silence.restart();
      this.#options.onFrame();
    };
    silence.signal.addEventListener('abort', () => {
      if (!silence.isExpired) return;
      this.end(unreachable(host, `it was silent for ${times.silenceMs} ms`), { isAtOnce: false, isSilent: true });
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
    const ended = { error: unreachable(host, 'it ended'), isAtOnce: true, isInvalidFrame: false, isSilent: false };
    const why = this.#why ?? ended;
    return { ...why, upMs: this.#upAtMs === undefined ? 0 : performance.now() - this.#upAtMs };
  }

  async #hello(): Promise<void> {
    const { bridgeId, clientName, onHello } = this.#options;
    const sentMs = performance.now();
    const hello = await this.request(
      'hello',
      { version: PROTOCOL_VERSION, bridgeId, name: clientName().slice(0, 100) },
      this.#life.signal,
    );
    this.#upAtMs = performance.now();
    onHello(hello, Math.round(this.#upAtMs - sentMs));
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
        this.end(unreachable(host, 'this machine slept, and the link did not survive it'), { isSilent: true });
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
    if (code === CLOSE_CODES.REPLACED.code) {
      return this.end(unreachable(host, 'a newer link of this program took its place'));
    }
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

/** Resolves at the abort. */
async function once(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
