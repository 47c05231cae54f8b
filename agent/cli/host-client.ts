import type { Socket } from 'node:net';
import { connect } from 'node:net';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { z } from 'zod';
import { Deadline } from '../../shared/abort.ts';
import { AppError, isErrorCode } from '../../shared/errors.ts';
import { Frame, HOST_REQUESTS, REQUESTS } from '../../shared/protocol.ts';

const ASKABLE = { ...REQUESTS, ...HOST_REQUESTS };
export type Askable = Exclude<keyof typeof ASKABLE, 'hello' | `job.${string}` | `slot.${string}`>;
type Asked<M extends Askable> = z.infer<(typeof ASKABLE)[M]['params']>;
type Answer<M extends Askable> = z.infer<(typeof ASKABLE)[M]['result']>;

const CONNECT_MS = 5_000;
const ANSWER_MS = 15_000;
/** A load answers when it is done, or after `times.move_answer`. */
const MOVE_ANSWER_MS = 900_000;

/** Why no agent answers the commands on its host. */
export class NoAgent extends Error {
  readonly isDenied: boolean;

  constructor(message: string, { isDenied = false, cause }: { isDenied?: boolean; cause?: unknown } = {}) {
    super(message, { cause });
    this.name = 'NoAgent';
    this.isDenied = isDenied;
  }
}

/** The agent of this host, spoken to over its socket; one request at a time. */
export class HostClient implements Disposable {
  readonly #socket: Socket;
  readonly #lines: AsyncIterator<string>;
  #lastId = 0;
  /** Of the agent, as it says itself. */
  pid: number | undefined;

  private constructor(socket: Socket, lines: AsyncIterator<string>) {
    this.#socket = socket;
    this.#lines = lines;
  }

  /** Throws NoAgent. `path`: see `socketPath`. */
  static async connect(path: string): Promise<HostClient> {
    using patience = new Deadline({ ms: CONNECT_MS });
    const socket = connect(path);
    try {
      await once(socket, 'connect', { signal: patience.signal });
    } catch (error) {
      socket.destroy();
      throw noAgent(path, error);
    }
    socket.on('error', () => socket.destroy()); // its end is seen where a line is awaited
    const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
    const client = new HostClient(socket, lines);
    const greeting = await client.#line(patience.signal);
    if (greeting !== undefined && /^pid \d+$/.test(greeting)) {
      client.pid = Number(greeting.slice('pid '.length));
      return client;
    }
    client[Symbol.dispose]();
    throw new NoAgent(`Whoever listens on ${path} is no gantry-agent, or does not answer. Restart the agent.`);
  }

  /** Throws AppError with the agent's words, or NoAgent when it went away meanwhile. */
  async ask<M extends Askable>(method: M, params: Asked<M>): Promise<Answer<M>> {
    const ms = method.startsWith('model.') ? MOVE_ANSWER_MS : ANSWER_MS;
    using patience = new Deadline({ ms });
    this.#lastId += 1;
    this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', id: this.#lastId, method, params })}\n`);
    const line = await this.#line(patience.signal);
    if (patience.isExpired) throw new NoAgent(`The agent runs, but gave no answer in ${ms / 1_000} s. See its log.`);
    if (line === undefined) {
      throw new NoAgent('The agent hung up: it is starting, stopping, or of an older release. Ask again in a moment.');
    }
    const frame = Frame.parse(JSON.parse(line));
    if ('error' in frame) {
      const { code, message } = frame.error.data;
      throw new AppError(isErrorCode(code) ? code : 'INTERNAL', message);
    }
    if (!('result' in frame)) throw new NoAgent('The agent answered with something else than a reply. Restart it.');
    return ASKABLE[method].result.parse(frame.result) as Answer<M>; // the schema of this very method
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  /** Undefined when the agent hung up. */
  async #line(signal: AbortSignal): Promise<string | undefined> {
    const onAbort = (): void => void this.#socket.destroy(); // which ends the lines
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      const next = await this.#lines.next();
      return next.done === true ? undefined : next.value;
    } catch {
      return undefined; // it hung up while we wrote
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }
}

function noAgent(path: string, cause: unknown): NoAgent {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  if (code === 'EACCES' || code === 'EPERM') {
    const message = `${path} may be opened by its owner only. Run this as the user of the agent, for example with sudo -u gantry.`;
    return new NoAgent(message, { isDenied: true, cause });
  }
  return new NoAgent(
    `No gantry-agent runs here (nobody listens on ${path}). Start it with \`gantry-agent run\`, or name another ` +
      'configuration with --config FILE.',
    { cause },
  );
}
