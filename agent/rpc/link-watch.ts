import type { WebSocket } from 'ws';
import { LIMITS } from '../../shared/limits.ts';

/** Why a link has to end, as a log event. */
export type LinkDefect =
  { event: 'link-silent'; silentMs: number } | { event: 'link-too-slow'; bufferedBytes: number; undrainedMs: number };

/** Durations of a link: how often it is pinged, and for how long it may be silent or leave what was sent unread. */
export type LinkTimes = { pingEveryMs: number; silenceMs: number; undrainedMs: number };

/** Whether the other end of a link is still there and still reads. It owns nothing: its owner asks about once a second. */
export class LinkWatch {
  readonly #socket: WebSocket;
  #lastSeenMs = performance.now();
  #lastPingMs = performance.now();
  #fullSinceMs: number | undefined;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    const seen = (): void => void (this.#lastSeenMs = performance.now());
    for (const event of ['message', 'ping', 'pong']) socket.on(event, seen);
  }

  /** More waits for the peer than a status is worth. */
  get isFull(): boolean {
    return this.#socket.bufferedAmount > LIMITS.statusSkipBytes.value;
  }

  /** Sends the ping that is due. */
  check({ pingEveryMs, silenceMs, undrainedMs }: LinkTimes): LinkDefect | undefined {
    const nowMs = performance.now();
    const silentMs = Math.round(nowMs - this.#lastSeenMs);
    if (silentMs > silenceMs) return { event: 'link-silent', silentMs };
    if (nowMs - this.#lastPingMs >= pingEveryMs && this.#socket.readyState === this.#socket.OPEN) {
      this.#lastPingMs = nowMs;
      this.#socket.ping();
    }
    return this.#backlog(nowMs, undrainedMs);
  }

  #backlog(nowMs: number, limitMs: number): LinkDefect | undefined {
    this.#fullSinceMs = this.isFull ? (this.#fullSinceMs ?? nowMs) : undefined;
    const undrainedMs = Math.round(nowMs - (this.#fullSinceMs ?? nowMs));
    const { bufferedAmount: bufferedBytes } = this.#socket;
    if (bufferedBytes <= LIMITS.statusEndBytes.value && undrainedMs < limitMs) return undefined;
    return { event: 'link-too-slow', bufferedBytes, undrainedMs };
  }
}
