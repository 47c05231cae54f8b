import { EventEmitter, once } from 'node:events';
import type { IncomingMessage, Server, ServerOptions, ServerResponse } from 'node:http';
import { createServer, STATUS_CODES } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { finished } from 'node:stream/promises';
import { WebSocketServer } from 'ws';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { LIMITS } from '../../shared/limits.ts';
import { SUBPROTOCOL, WS_PATH } from '../../shared/protocol.ts';
import type { TokenRef } from '../job/session.ts';
import type { SessionParts } from './bridge-session.ts';
import { BridgeSession } from './bridge-session.ts';
import type { LinkTimes } from './link-watch.ts';
import type { Audit } from './audit.ts';
import { addressOf } from './connection-budget.ts';
import type { GateOptions } from './gate.ts';
import { Gate } from './gate.ts';
import type { Refusal } from './peer-check.ts';
import { checkAddress } from './peer-check.ts';

export type RpcListenerOptions = Omit<GateOptions, 'log' | 'audit'> & {
  host: string;
  port: number;
  /** Key and certificate; without them the port is plain. */
  tls?: { key: string; cert: string } | undefined;
  /** Names a Host header may carry besides this machine's own. */
  names: readonly string[];
  /** Reads which tokens there are with which roles, about once a second while there are links, for all of them. */
  validTokens: () => Promise<(token: TokenRef) => boolean>;
  /** Answers a plain HTTP request from a known address; it asks for the token, or for a pairing, where it needs one. */
  onRequest: (request: IncomingMessage, response: ServerResponse, access: Access) => Promise<void>;
  /** Told how many links there are, whenever one begins or ends. */
  onLinks?: ((count: number) => void) | undefined;
  session: Omit<SessionParts, 'audit' | 'refusal'>;
  audit: Audit;
  times: LinkTimes;
  log: Log;
};

/** What a request may ask of the gate. */
export type Access = {
  token: () => Promise<TokenRef>;
  pairing: <T>(redeem: () => Promise<T>) => Promise<T>;
};

const TICK_MS = 1_000;
const CLOSE_MS = 1_000;
/** A connection that sends or reads nothing for this long is ended; links have their own heartbeat. */
const IDLE_MS = 30_000;
/** A hand-shake of TLS that takes longer is no hand-shake. */
const HANDSHAKE_MS = 5_000;
/** So long a peer may go on sending a body that was refused already. */
const LATE_BODY_MS = 5_000;

/**
 * The agent's one port. Everything about a peer is checked before the upgrade: path, Host, Origin, token, sub-protocol,
 * in this order; only then does a WebSocket exist.
 */
export class RpcListener implements AsyncDisposable {
  readonly #options: RpcListenerOptions;
  readonly #server: Server;
  readonly #sockets: WebSocketServer;
  readonly #gate: Gate;
  readonly #sessions = new Set<BridgeSession>();
  readonly #connections = new Set<Socket>();
  readonly #events = new EventEmitter();
  readonly #stop = new AbortController();
  /** Ends when the listener is disposed; a rejection is a defect. */
  readonly done: Promise<void>;

  private constructor(options: RpcListenerOptions, server: Server) {
    this.#options = options;
    this.#gate = new Gate(options);
    this.#server = server;
    this.#server.on('request', (request, response) => void this.#respond(request, response)); // it catches everything itself
    this.#server.setTimeout(IDLE_MS);
    this.#server.on('connection', (connection: Socket) => {
      this.#connections.add(connection);
      connection.once('close', () => this.#connections.delete(connection));
      this.#gate.connections.add(connection);
    });
    this.#server.on('upgrade', (request, socket, head) => void this.#upgrade(request, socket, head)); // likewise
    this.#sockets = new WebSocketServer({
      noServer: true,
      clientTracking: false,
      maxPayload: LIMITS.frameBytes.value,
      maxFragments: 1_024,
      maxBufferedChunks: 65_536,
      perMessageDeflate: false,
      handleProtocols: () => SUBPROTOCOL,
    });
    this.done = this.#watch(this.#stop.signal);
  }

  static async open(options: RpcListenerOptions): Promise<RpcListener> {
    const listener = new RpcListener(options, await createPort(options.tls));
    try {
      await once(listener.#server.listen(options.port, options.host), 'listening');
      return listener;
    } catch (error) {
      await listener[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Bridges that are connected. */
  get links(): number {
    return this.#sessions.size;
  }

  get address(): { host: string; port: number } {
    const { address, port } = this.#server.address() as AddressInfo; // a TCP server that listens has one
    return { host: address, port };
  }

  /** Ends every link with a goodbye, and the port. Links that do not answer the goodbye are cut. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    await this.done;
    for (const session of this.#sessions) session.goAway();
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.#server.closeIdleConnections();
    using patience = new Deadline({ ms: CLOSE_MS });
    await untilAborted(closed, patience.signal).catch(() => undefined); // the rest is cut
    for (const connection of this.#connections) connection.destroy();
    await closed;
  }

  async #respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { names, onRequest, log } = this.#options;
    const access: Access = {
      token: () => this.#httpToken(request, response),
      pairing: (redeem) => this.#gate.pairing(request, redeem),
    };
    try {
      const refusal = checkAddress(request, names);
      if (refusal !== undefined) sendRefusal(response, refusal);
      else await onRequest(request, response, access);
    } catch (error) {
      if (request.socket.destroyed) return; // the peer has gone: nobody to tell
      if (!(error instanceof AppError)) log.error({ event: 'request-failed', method: request.method, err: error });
      sendRefusal(response, refusalOf(error));
    } finally {
      if (!request.complete && !request.socket.destroyed) await throwAwayBody(request);
    }
  }

  /** Requests that change something are noted with what came of them. */
  async #httpToken(request: IncomingMessage, response: ServerResponse): Promise<TokenRef> {
    const token = await this.#gate.token(request);
    const refusal = this.#gate.refusal(token.id, 'http');
    if (refusal !== undefined) throw refusal;
    const { method = '', url = '' } = request;
    if (method !== 'GET' && method !== 'HEAD') {
      const [object = ''] = url.slice(0, 200).split('?');
      const entry = {
        action: `http.${method.toLowerCase()}`,
        object,
        tokenId: token.id,
        from: addressOf(request.socket),
      };
      response.once('finish', () => this.#options.audit({ ...entry, outcome: String(response.statusCode) }));
    }
    return token;
  }

  async #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const { names, audit, log } = this.#options;
    const from = addressOf(request.socket);
    const onError = (): void => void socket.destroy(); // a peer that resets while it is checked
    socket.on('error', onError);
    try {
      const refusal = checkPath(request) ?? checkAddress(request, names);
      if (refusal !== undefined) return refuseUpgrade(socket, refusal);
      const token = await this.#gate.token(request);
      const wrong = checkSubprotocol(request);
      if (wrong !== undefined) return refuseUpgrade(socket, wrong);
      if (socket.destroyed || this.#stop.signal.aborted) return void socket.destroy();
      socket.off('error', onError);
      this.#sockets.handleUpgrade(request, socket, head, (webSocket) => {
        const parts: SessionParts = {
          ...this.#options.session,
          audit: (entry) => audit({ ...entry, tokenId: token.id, from }),
          refusal: (method) => this.#gate.refusal(token.id, method),
        };
        audit({ action: 'link.open', outcome: 'ok', tokenId: token.id, role: token.role, from });
        const session = new BridgeSession(webSocket, { token, parts });
        this.#sessions.add(session);
        webSocket.once('close', () => {
          this.#sessions.delete(session);
          this.#options.onLinks?.(this.#sessions.size);
        });
        this.#options.onLinks?.(this.#sessions.size);
        this.#events.emit('session');
      });
    } catch (error) {
      const refusal = refusalOf(error);
      if (refusal.status !== 429) log.warn({ event: 'upgrade-refused', ip: from, status: refusal.status });
      if (!(error instanceof AppError)) log.error({ event: 'request-failed', method: 'upgrade', err: error });
      refuseUpgrade(socket, refusal);
    }
  }

  /** One tick for all links; it stands still while there are none. */
  async #watch(signal: AbortSignal): Promise<void> {
    const { times } = this.#options;
    const tickMs = Math.min(TICK_MS, times.pingEveryMs / 2);
    while (!signal.aborted) {
      if (this.#sessions.size === 0) await once(this.#events, 'session', { signal }).catch(() => undefined); // only aborts
      await pause(tickMs, signal);
      if (signal.aborted) return;
      const mayStay = await this.#validTokens();
      for (const session of this.#sessions) {
        session.tick(times);
        if (!mayStay(session.token)) this.#expel(session);
      }
    }
  }

  /** A token was revoked: its links close at once, whoever noticed. */
  revoked(tokenId: string): void {
    for (const session of this.#sessions) if (session.token.id === tokenId) this.#expel(session);
  }

  #expel(session: BridgeSession): void {
    this.#gate.forget(session.token.id);
    session.close('AUTH_REVOKED');
  }

  async #validTokens(): Promise<(token: TokenRef) => boolean> {
    try {
      return await this.#options.validTokens();
    } catch (error) {
      // A file that cannot be read for a moment ends no link; new ones are refused meanwhile.
      this.#options.log.error({ event: 'tokens-unreadable', err: error });
      return () => true;
    }
  }
}

/** TLS is loaded only where it is spoken: most agents listen on 127.0.0.1. */
async function createPort(tls: { key: string; cert: string } | undefined): Promise<Server> {
  const limits: ServerOptions = {
    headersTimeout: 5_000,
    requestTimeout: 0,
    maxHeaderSize: 8_192,
    connectionsCheckingInterval: 1_000,
  };
  if (tls === undefined) return createServer(limits);
  const https = await import('node:https');
  const server = https.createServer({ ...limits, ...tls, minVersion: 'TLSv1.3', handshakeTimeout: HANDSHAKE_MS });
  server.on('tlsClientError', (_error, socket) => socket.destroy()); // whoever speaks something else; many scans do
  return server;
}

function checkPath(request: IncomingMessage): Refusal | undefined {
  if (request.url === WS_PATH) return undefined;
  return { status: 404, code: 'INVALID_ARGUMENT', message: `The WebSocket is at ${WS_PATH}.` };
}

function checkSubprotocol(request: IncomingMessage): Refusal | undefined {
  const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((name) => name.trim());
  if (offered.includes(SUBPROTOCOL)) return undefined;
  const message = `This agent speaks the sub-protocol ${SUBPROTOCOL} only. Update the older side.`;
  return { status: 426, code: 'VERSION_MISMATCH', message };
}

/** What a peer is told of an error. Of a defect only that there was one: paths and stacks stay in the log. */
function refusalOf(error: unknown): Refusal {
  if (!(error instanceof AppError)) {
    return {
      status: 500,
      code: 'INTERNAL',
      message: 'The agent failed to answer. Its log on that host has the details.',
    };
  }
  const { code, message, retryAfterMs } = error;
  const retryAfter = retryAfterMs === undefined ? {} : { retryAfterS: Math.ceil(retryAfterMs / 1_000) };
  return { status: HTTP_STATUS[code] ?? 400, code, message, ...retryAfter };
}

const HTTP_STATUS: Partial<Record<AppError['code'], number>> = {
  AUTH_FAILED: 401,
  JOB_NOT_FOUND: 404,
  QUOTA_EXCEEDED: 429,
  RATE_LIMITED: 429,
  DISK_FULL: 507,
  INTERNAL: 500,
};

/**
 * The answer was given before the end of the body. Cutting the connection at once would take the answer with it, so the
 * rest is read for a while and thrown away.
 */
async function throwAwayBody(request: IncomingMessage): Promise<void> {
  using patience = new Deadline({ ms: LATE_BODY_MS });
  request.resume();
  await finished(request, { signal: patience.signal }).catch(() => request.socket.destroy());
}

function bodyOf({ code, message }: Refusal): string {
  return JSON.stringify({ error: { code, message } });
}

function sendRefusal(response: ServerResponse, refusal: Refusal): void {
  if (response.headersSent) {
    response.destroy(); // a half answer must not look complete
    return;
  }
  response.writeHead(refusal.status, { 'content-type': 'application/json', ...extraHeaders(refusal) });
  response.end(bodyOf(refusal));
}

function extraHeaders({ status, retryAfterS }: Refusal): Record<string, string> {
  return {
    ...(status === 401 && { 'www-authenticate': 'Bearer' }),
    ...(retryAfterS !== undefined && { 'retry-after': String(retryAfterS) }),
  };
}

function refuseUpgrade(socket: Duplex, refusal: Refusal): void {
  const body = bodyOf(refusal);
  const extra = Object.entries(extraHeaders(refusal)).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(
    `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status] ?? ''}\r\n` +
      `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n${extra.join('')}\r\n${body}`,
    () => socket.destroy(),
  );
}
