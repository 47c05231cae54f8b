import type { RawData, WebSocket } from 'ws';
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Frame, Notification } from '../../shared/protocol.ts';
import { CLOSE_CODES, METHOD_NOT_FOUND, PROTOCOL_VERSION, REQUESTS } from '../../shared/protocol.ts';
import type { Exchange } from '../job/exchange.ts';
import type { Session, TokenRef } from '../job/session.ts';
import { cleaned, closeReason, errorFrame, parseFrame } from './frames.ts';
import { LinkWatch } from './link-watch.ts';
import type { LinkTimes } from './link-watch.ts';
import type { BridgeContext } from './method-table.ts';
import { BRIDGE_METHODS } from './method-table.ts';
import type { RequestDeskOptions } from './request-desk.ts';
import { RequestDesk } from './request-desk.ts';
import type { StatusFeed } from './status-feed.ts';

export type SessionParts = {
  exchange: Exchange;
  status: StatusFeed;
  agentId: string;
  epoch: string;
  audit?: RequestDeskOptions<BridgeContext>['audit'];
  refusal?: RequestDeskOptions<BridgeContext>['refusal'];
  log: Log;
};

type CloseReason = keyof typeof CLOSE_CODES;

/** Only the version is read before it is compared: everything else may mean something different in another one. */
const AnyHello = z.object({ version: z.int() });

/** One connected bridge: its frames in, replies and notifications out. It ends with its socket, and the socket with it. */
export class BridgeSession {
  readonly token: TokenRef;
  readonly #socket: WebSocket;
  readonly #parts: SessionParts;
  readonly #watch: LinkWatch;
  readonly #ended = new AbortController();
  #session: Session | undefined;
  #unsubscribe: () => void = () => undefined;
  #desk: RequestDesk<BridgeContext> | undefined;
  #hasGap = false;

  constructor(socket: WebSocket, { token, parts }: { token: TokenRef; parts: SessionParts }) {
    this.token = token;
    this.#socket = socket;
    this.#parts = parts;
    this.#watch = new LinkWatch(socket);
    socket.on('message', (data, isBinary) => this.#receive(data, isBinary));
    socket.on('error', (error) => parts.log.info({ event: 'link-error', tokenId: token.id, reason: error.message }));
    socket.once('close', (code) => this.#end(code));
  }

  /** Called about once a second: pings, and ends a link that is silent or does not read. */
  tick(times: LinkTimes): void {
    const defect = this.#watch.check(times);
    if (defect !== undefined) {
      this.#parts.log.warn({ tokenId: this.token.id, ...defect });
      // No close frame: it would wait behind what the peer does not read.
      this.#socket.terminate();
      return;
    }
    if (this.#hasGap && !this.#watch.isFull) this.#sendSnapshot();
  }

  close(reason: CloseReason, text?: string): void {
    const { code, meaning } = CLOSE_CODES[reason];
    this.#socket.close(code, closeReason(text ?? meaning));
  }

  /** Says goodbye as the agent goes down. */
  goAway(): void {
    this.#socket.close(1001, 'the agent is stopping');
  }

  get #isOpen(): boolean {
    return this.#socket.readyState === this.#socket.OPEN;
  }

  #receive(data: RawData, isBinary: boolean): void {
    if (!this.#isOpen) return; // frames that were on their way when we closed
    const frame = isBinary ? undefined : parseFrame(data);
    if (frame === undefined || !frame.success) {
      this.#refuseFrame('frame', frame?.error);
      return;
    }
    if (!('method' in frame.data))
      this.#refuseFrame('reply', undefined); // the agent asks nothing, so nothing is a reply
    else if ('id' in frame.data) this.#request(frame.data);
    // A notification this release does not know is ignored; it knows none.
  }

  #request(request: { id: number; method: string; params: unknown }): void {
    if (this.#session === undefined || this.#desk === undefined) return this.#hello(request);
    this.#session.touch();
    if (request.method === 'hello') {
      this.#fail(request.id, new AppError('INVALID_ARGUMENT', 'hello was said already'), METHOD_NOT_FOUND);
    } else this.#desk.take(request);
  }

  #hello({ id, method, params }: { id: number; method: string; params: unknown }): void {
    const asked = AnyHello.safeParse(params);
    if (method === 'hello' && asked.success && asked.data.version !== PROTOCOL_VERSION) {
      const message = `This agent speaks protocol version ${PROTOCOL_VERSION}, the bridge ${asked.data.version}. Update the older one.`;
      this.#fail(id, new AppError('VERSION_MISMATCH', message));
      this.close('VERSION_MISMATCH', message);
      return;
    }
    const hello = REQUESTS.hello.params.safeParse(params);
    if (method !== 'hello' || !hello.success) {
      this.#refuseFrame(method === 'hello' ? 'hello' : 'not-hello', hello.error);
      return;
    }
    const { exchange, agentId, epoch, status, audit, refusal, log } = this.#parts;
    const { bridgeId, name } = hello.data;
    this.#session = exchange.openSession({
      token: this.token,
      bridgeId,
      notify: (notification) => this.#notify(notification),
      onReplaced: () => this.close('REPLACED'),
    });
    this.#desk = new RequestDesk<BridgeContext>({
      methods: BRIDGE_METHODS,
      role: this.token.role,
      context: { session: this.#session, exchange, signal: this.#ended.signal },
      send: (frame) => this.#send(frame),
      onInvalid: (invalid, error) => this.#refuseFrame(invalid, error),
      onTooMany: () => this.close('TOO_MANY_REQUESTS'),
      refusal,
      audit,
      log,
    });
    log.info({ event: 'bridge-connected', tokenId: this.token.id, bridgeId, bridgeName: cleaned(name, 100) });
    this.#send({ jsonrpc: '2.0', id, result: { agentId, epoch, jobs: this.#session.jobs() } });
    this.#unsubscribe = status.subscribe((delta) => this.#sendStatus(delta));
    this.#sendSnapshot();
  }

  #notify({ method, params }: Notification): void {
    this.#send({ jsonrpc: '2.0', method, params });
  }

  #fail(id: number, error: AppError, number?: number): void {
    this.#send(errorFrame(id, error, number));
  }

  #send(frame: Frame): void {
    if (this.#isOpen) this.#socket.send(JSON.stringify(frame));
  }

  /** Status is a stream of latest values: a slow reader misses some and gets a whole snapshot when it has caught up. */
  #sendStatus(delta: Buffer): void {
    if (this.#hasGap || this.#watch.isFull) this.#hasGap = true;
    else if (this.#isOpen) this.#socket.send(delta, { binary: false });
  }

  #sendSnapshot(): void {
    this.#hasGap = false;
    if (this.#isOpen) this.#socket.send(this.#parts.status.snapshotFrame(), { binary: false });
  }

  #refuseFrame(what: string, error: z.ZodError | undefined): void {
    const issue = error?.issues[0];
    const path = [what, ...(issue?.path.map(String) ?? [])].join('.');
    this.#parts.log.warn({
      event: 'invalid-frame',
      tokenId: this.token.id,
      path: cleaned(path, 100),
      problem: issue?.message,
    });
    this.close('INVALID_FRAME', `invalid ${cleaned(path, 60)}: ${issue?.message ?? 'not allowed here'}`);
  }

  #end(code: number): void {
    this.#ended.abort();
    this.#unsubscribe();
    this.#session?.close();
    this.#parts.log.info({ event: 'bridge-disconnected', tokenId: this.token.id, closeCode: code });
  }
}
