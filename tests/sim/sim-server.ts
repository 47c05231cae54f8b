import { execa } from 'execa';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type HeldMemory, Ledger, type LedgerGpu, startTimeOf } from '../../scripts/sim/lib/ledger.ts';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { fetchBody } from '../../shared/http-client.ts';

export const GPUS: LedgerGpu[] = [
  { uuid: 'GPU-one', index: 0, name: 'Simulated H100', totalMiB: 80_000, reservedMiB: 500 },
  { uuid: 'GPU-two', index: 1, name: 'Simulated L40S', totalMiB: 46_000, reservedMiB: 300 },
];

/** A ledger directory with two GPUs; ends every process noted in it. */
export class SimHost implements AsyncDisposable {
  readonly dir: string;
  readonly ledger: Ledger;

  private constructor(dir: string) {
    this.dir = dir;
    this.ledger = new Ledger(dir);
  }

  static async create(gpus = GPUS): Promise<SimHost> {
    const dir = await mkdtemp(join(tmpdir(), 'gantry-sim-'));
    await writeFile(join(dir, 'gpus.json'), JSON.stringify(gpus));
    return new SimHost(dir);
  }

  usedMiB(gpuUuid = 'GPU-one'): number {
    return this.ledger.usedMiB(gpuUuid);
  }

  /** Memory that somebody else holds: this test, which lives long enough. */
  plant(usedMiB: number, gpuUuid = 'GPU-one'): void {
    const startTime = startTimeOf(process.pid) ?? '';
    this.ledger.note({ pid: process.pid, startTime, gpuUuid, usedMiB, name: 'foreign' });
  }

  nvidiaSmi(...args: string[]) {
    return execa('dist/sim/nvidia-smi', args, { env: { GANTRY_SIM_LEDGER: this.dir }, reject: false });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const entry of this.ledger.entries()) if (entry.pid !== process.pid && entry.isAlive) kill(entry.pid);
    await rm(this.dir, { recursive: true, force: true, maxRetries: 3 });
  }
}

/** `at('acks.0.status')` is what stands there in a JSON body. */
export type Reply = {
  status: number;
  headers: Record<string, unknown>;
  body: Buffer;
  text: string;
  json: unknown;
  at: (path: string) => unknown;
  keys: (path?: string) => string[];
};

/** One simulated engine as a process of its own. Disposal kills it, and `host` kills its worker. */
export class SimServer implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly port: number;
  readonly startedMs = performance.now();
  readonly #exit: Promise<unknown[]>;
  stderr = '';

  private constructor(child: ChildProcess, port: number) {
    this.child = child;
    this.port = port;
    this.#exit = once(child, 'exit');
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
  }

  /** vLLM-Omni, quick unless the arguments say otherwise (a later flag wins). Does not wait. */
  static async spawnOmni(host: SimHost, args: string[] = [], env: Record<string, string> = {}, port?: number) {
    return SimServer.#spawnOmni(host, ['--enable-sleep-mode', ...args], env, port ?? (await freePort()));
  }

  static async omni(host: SimHost, args: string[] = [], env: Record<string, string> = {}): Promise<SimServer> {
    return SimServer.#onceReady(await SimServer.spawnOmni(host, args, env));
  }

  static async omniWithoutSleepMode(host: SimHost): Promise<SimServer> {
    return SimServer.#onceReady(SimServer.#spawnOmni(host, [], {}, await freePort()));
  }

  static #spawnOmni(host: SimHost, args: string[], env: Record<string, string>, port: number): SimServer {
    const own = ['serve', 'org/model', '--omni', '--host', '127.0.0.1', '--port', String(port)];
    const quick = ['--load-ms', '20', '--generate-ms', '20', '--sleep-ms', '10'];
    const memory = ['--weights-mib', '20000', '--peak-mib', '24000', '--residual-mib', '1500'];
    const argv = [...own, ...quick, ...memory, ...args];
    return new SimServer(spawnSim('vllm-omni', argv, { GANTRY_SIM_LEDGER: host.dir, ...env }), port);
  }

  static async step1x(host: SimHost, args: string[] = [], env: Record<string, string> = {}): Promise<SimServer> {
    const port = await freePort();
    const quick = ['--load-ms', '40', '--generate-ms', '20', '--weights-mib', '30000', '--peak-mib', '40000'];
    const variables = { PORT: String(port), HOST: '127.0.0.1', GANTRY_SIM_LEDGER: host.dir, ...env };
    return SimServer.#onceReady(new SimServer(spawnSim('step1x-edit', [...quick, ...args], variables), port));
  }

  static async #onceReady(server: SimServer): Promise<SimServer> {
    try {
      await server.ready();
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  /** Its exit code and signal. A server that stays is an error, so that the test still ends it. */
  get exited(): Promise<unknown[]> {
    const patience = new Deadline({ ms: 8_000 });
    return untilAborted(this.#exit, patience.signal).finally(() => patience[Symbol.dispose]());
  }

  async ready(): Promise<void> {
    await eventually(`${this.child.spawnargs.join(' ')} is ready: ${this.stderr}`, async () => {
      if (this.child.exitCode !== null) throw new Error(`ended with ${this.child.exitCode}: ${this.stderr}`);
      return (await this.get('/health').catch(() => undefined))?.status === 200;
    });
  }

  /** For a server that never becomes ready, or not in time. */
  async says(text: string): Promise<void> {
    await eventually(`it says "${text}": ${this.stderr.slice(-500)}`, () => this.stderr.includes(text));
  }

  get(path: string, headers: Record<string, string> = {}, signal?: AbortSignal): Promise<Reply> {
    return this.#ask('GET', path, { headers, ...(signal && { signal }) });
  }

  post(path: string, body: unknown, o: { headers?: Record<string, string>; signal?: AbortSignal } = {}) {
    const headers = { 'content-type': 'application/json', ...o.headers };
    return this.#ask('POST', path, { ...o, headers, body: Buffer.from(JSON.stringify(body)) });
  }

  /** A small picture with these parameters on top. */
  generate(parameters: object = {}, signal?: AbortSignal): Promise<Reply> {
    const body = { prompt: 'a cat', size: '64x64', num_inference_steps: 4, seed: 1, ...parameters };
    return this.post('/v1/images/generations', body, signal && { signal });
  }

  async postForm(path: string, fields: Record<string, string | Buffer>, signal?: AbortSignal): Promise<Reply> {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      if (typeof value === 'string') form.append(name, value);
      else form.append(name, new Blob([Uint8Array.from(value)]), 'input.png');
    }
    // Response turns a form into its bytes and the content type with the boundary.
    const encoded = new Response(form);
    const headers = { 'content-type': encoded.headers.get('content-type') ?? '' };
    const body = Buffer.from(await encoded.arrayBuffer());
    return this.#ask('POST', path, { headers, body, ...(signal && { signal }) });
  }

  sleep(body: object = { stage_ids: [0], level: 1 }): Promise<Reply> {
    return this.post('/v1/omni/sleep', body);
  }

  wake(): Promise<Reply> {
    return this.post('/v1/omni/wakeup', { stage_ids: [0] });
  }

  async #ask(
    method: 'GET' | 'POST',
    path: string,
    o: { headers: Record<string, string>; body?: Buffer; signal?: AbortSignal },
  ): Promise<Reply> {
    const url = `http://127.0.0.1:${this.port}${path}`;
    const signal = o.signal ?? new AbortController().signal;
    const reply = await fetchBody(url, { method, deadlineMs: 8_000, maxBytes: 50_000_000, ...o, signal });
    const isJson = /json/.test(reply.headers['content-type'] ?? '');
    const text = reply.body.toString('utf8');
    const json: unknown = isJson ? JSON.parse(text) : undefined;
    const at = (path: string): unknown => valueAt(json, path);
    const keys = (path?: string): string[] => Object.keys(Object(path === undefined ? json : at(path)) as object);
    return { ...reply, text, json, at, keys };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    kill(this.pid);
    await this.#exit;
    this.child.stderr?.destroy();
  }
}

/** Asks every 20 ms; the error names what was awaited. */
export async function eventually(
  what: string,
  check: () => Promise<boolean> | boolean,
  withinMs = 60_000,
): Promise<void> {
  const signal = AbortSignal.timeout(withinMs);
  while (!(await check())) {
    if (signal.aborted) throw new Error(`not within ${withinMs} ms: ${what}`);
    await pause(20, signal);
  }
}

/** True when the promise is still open after `ms`. */
export async function isOpenAfter(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let isOpen = true;
  const settled = promise.then(
    () => (isOpen = false),
    () => (isOpen = false),
  );
  await Promise.race([settled, pause(ms, new AbortController().signal)]);
  return isOpen;
}

export function imageOf(reply: Reply, index = 0): Buffer {
  const text = reply.at(`data.${index}.b64_json`);
  return Buffer.from(typeof text === 'string' ? text : '', 'base64');
}

/** What stands at `a.0.b`, or undefined. */
export function valueAt(value: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce<unknown>(
      (at, name) =>
        typeof at === 'object' && at !== null ? Object.entries(at).find(([key]) => key === name)?.[1] : undefined,
      value,
    );
}

export function entryOf(host: SimHost, index = 0): HeldMemory {
  const entry = host.ledger.entries()[index];
  if (!entry) throw new Error('the ledger is empty');
  return entry;
}

export function isAlive(pid: number): boolean {
  return startTimeOf(pid) !== undefined;
}

export function kill(pid: number): void {
  if (pid > 0 && existsSync(`/proc/${pid}`)) process.kill(pid, 'SIGKILL');
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address ? address.port : 0;
}

function spawnSim(name: string, args: string[], env: Record<string, string>): ChildProcess {
  const variables = { PATH: process.env['PATH'], GANTRY_SIM_HOST: 'testhost', ...env };
  return spawn(`dist/sim/${name}`, args, { env: variables, stdio: ['ignore', 'ignore', 'pipe'] });
}
