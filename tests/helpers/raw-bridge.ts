import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';

const PROGRAM = resolve('dist/gantry.cjs');

type Message = { id?: number; method?: string; result?: unknown; error?: unknown };

/** The built bridge as a client starts it, speaking lines; everything it prints is kept. */
export class RawBridge {
  readonly child: ChildProcessWithoutNullStreams;
  /** Each line of stdout. */
  readonly lines: string[] = [];
  stderr = '';
  readonly #waiting = new Map<number, (answer: Message) => void>();
  readonly #exit: Promise<unknown[]>;
  #lastId = 0;

  constructor(o: { home: string; args?: readonly string[]; program?: string; env?: Record<string, string> }) {
    const { home, args = [], program = PROGRAM, env = {} } = o;
    this.child = spawn(process.execPath, [program, 'bridge', ...args], {
      cwd: home,
      env: { PATH: process.env['PATH'], HOME: home, ...env },
    });
    this.child.stdin.on('error', () => undefined); // a bridge that ended closes its input
    this.child.stderr.on('data', (text: Buffer) => (this.stderr += text.toString()));
    createInterface({ input: this.child.stdout }).on('line', (line) => this.#onLine(line));
    this.#exit = once(this.child, 'close');
  }

  send(message: Record<string, unknown>): void {
    this.child.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
  }

  /** Sends a request; its answer. */
  async ask(method: string, params: Record<string, unknown> = {}): Promise<Message> {
    const id = (this.#lastId += 1);
    const answer = new Promise<Message>((resolve) => this.#waiting.set(id, resolve));
    this.send({ id, method, params });
    return await answer;
  }

  async call(name: string, args: Record<string, unknown> = {}, meta: Record<string, unknown> = {}): Promise<Message> {
    return await this.ask('tools/call', { name, arguments: args, _meta: meta });
  }

  async initialize(): Promise<Message> {
    const clientInfo = { name: 'test', version: '1' };
    const answer = await this.ask('initialize', { protocolVersion: '2025-11-25', capabilities: {}, clientInfo });
    this.send({ method: 'notifications/initialized' });
    return answer;
  }

  /** Exit code or signal, once all it printed is read. */
  async ended(): Promise<unknown> {
    const [code, signal] = await this.#exit;
    return code ?? signal;
  }

  #onLine(line: string): void {
    this.lines.push(line);
    const message = JSON.parse(line) as Message; // anything else breaks the protocol, and with it the test
    if (message.id !== undefined && message.method === undefined) this.#waiting.get(message.id)?.(message);
  }
}
