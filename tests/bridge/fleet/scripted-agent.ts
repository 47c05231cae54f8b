import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import sharp from 'sharp';
import { WebSocketServer } from 'ws';
import type { WebSocket } from 'ws';
import { pause } from '../../../shared/abort.ts';
import { AppError } from '../../../shared/errors.ts';
import type { ErrorCode } from '../../../shared/errors.ts';
import type { HostSnapshot, VramCapacity } from '../../../shared/host-snapshot.ts';
import type { Job, JobError, JobResult } from '../../../shared/job.ts';
import { Frame, REQUESTS } from '../../../shared/protocol.ts';
import type { AgentJob, Method, Notification, OfferLine, Params, Result } from '../../../shared/protocol.ts';
import { model, MODEL, slot, snapshot } from './builders.ts';

type Held = AgentJob & { job: Job; image?: Buffer };

export type Script = {
  token?: string;
  runMs?: number;
  model?: string;
  /** Speaks first about a job it was given: a failure to report instead of an image. */
  fail?: (job: Job, host: ScriptedAgent) => { error: JobError; steps?: number } | undefined;
  /** Takes are refused with this. */
  refuse?: (job: Job) => ErrorCode | undefined;
  /** The host gives no grants by itself; the test does. */
  isManual?: boolean;
  /** A second session, as with another token, leaves the first to say hello alone: it goes on getting what is told. */
  hasManySessions?: boolean;
  /** Inputs it already has. */
  inputs?: readonly string[];
  snap?: Partial<HostSnapshot>;
  /** What its model could have there. */
  capacity?: VramCapacity;
};

/**
 * A peer that speaks the protocol as an agent would, over real sockets: one slot, grants while work is offered and it is
 * idle, images that are real PNGs. Its jobs survive lost links, as an agent's do.
 */
export class ScriptedAgent implements AsyncDisposable {
  readonly name: string;
  readonly script: Script;
  readonly jobs = new Map<string, Held>();
  /** What it was asked, in order: method and params. */
  readonly asked: { method: string; params: unknown }[] = [];
  readonly uploads = new Map<string, Buffer>();
  readonly #http: Server;
  readonly #ws = new WebSocketServer({ noServer: true });
  readonly #stop = new AbortController();
  readonly #work = new Set<Promise<void>>();
  readonly #changes = new Set<() => void>();
  #session: WebSocket | undefined;
  #offer: OfferLine[] = [];
  readonly #declined = new Set<string>();
  #grant: { grantId: string; key: string } | undefined;
  #running: string | undefined;
  #epoch: string = randomUUID();
  #revision = 0;
  /** Set: new connections are refused with this HTTP status. */
  refuseWith: number | undefined;
  /** How many image bodies are cut short before one is sent whole. */
  cutResults = 0;
  helloes = 0;

  private constructor(name: string, script: Script, http: Server) {
    this.name = name;
    this.script = script;
    this.#http = http;
  }

  static async start(name: string, script: Script = {}): Promise<ScriptedAgent> {
    const http = createServer();
    const agent = new ScriptedAgent(name, script, http);
    http.on('request', (request, response) => agent.#own(agent.#answerHttp(request, response)));
    http.on('upgrade', (request, socket, head) => agent.#upgrade(request, { socket, head }));
    http.listen(0, '127.0.0.1');
    await once(http, 'listening');
    return agent;
  }

  get config() {
    const { port } = this.#http.address() as AddressInfo; // a TCP server's address is never a text
    return { name: this.name, url: `ws://127.0.0.1:${port}`, token: this.script.token ?? 'secret' };
  }

  get offer(): readonly OfferLine[] {
    return this.#offer;
  }

  get runningJob(): string | undefined {
    return this.#running;
  }

  count(method: string): number {
    return this.asked.filter((one) => one.method === method).length;
  }

  /** Ends the connection without a goodbye, as a network does. */
  dropLink(): void {
    this.#session?.terminate();
    this.#session = undefined;
  }

  /** As if the agent had been restarted: what it had accepted and not finished has failed. */
  restart(): void {
    this.#epoch = randomUUID();
    this.#running = undefined;
    this.#grant = undefined;
    for (const held of this.jobs.values()) {
      if (held.state !== 'accepted' && held.state !== 'running') continue;
      held.state = 'failed';
      held.error = { code: 'INTERRUPTED', message: 'The agent was restarted.', retryable: true };
    }
    this.dropLink();
  }

  notify(notification: Notification): void {
    this.#send({ jsonrpc: '2.0', ...notification });
  }

  sendRaw(text: string): void {
    this.#session?.send(text);
  }

  /** The whole state, at the next revision, or at one with a gap before it. */
  status(o: { isGap?: boolean } = {}): void {
    this.#revision += o.isGap ? 2 : 1;
    this.notify({ method: 'delta', params: { revision: this.#revision, changed: this.#snapshot() } });
  }

  grantNow(line: Pick<OfferLine, 'model' | 'class'>): string {
    const grantId = randomUUID();
    this.#grant = { grantId, key: `${line.class} ${line.model}` };
    const { model: wanted, class: jobClass } = line;
    this.notify({
      method: 'slot.grant',
      params: { grantId, slotId: 'painter', model: wanted, class: jobClass, startsInMs: 0 },
    });
    return grantId;
  }

  /** Until the condition holds; looked at after each frame and each change. */
  async until(condition: () => boolean, ms = 60_000): Promise<void> {
    const late = AbortSignal.timeout(ms);
    while (!condition()) {
      if (late.aborted) throw new Error(`${this.name}: not so within ${ms} ms`);
      await pause(5, late);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    for (const client of this.#ws.clients) client.terminate();
    this.#http.closeAllConnections();
    await new Promise((resolve) => this.#http.close(resolve));
    while (this.#work.size > 0) await Promise.all(this.#work);
  }

  #upgrade(request: IncomingMessage, { socket, head }: { socket: Duplex; head: Buffer }): void {
    const isAllowed = request.headers.authorization === `Bearer ${this.script.token ?? 'secret'}`;
    const status = this.refuseWith ?? (isAllowed ? undefined : 401);
    if (status !== undefined) {
      socket.end(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
      return;
    }
    this.#ws.handleUpgrade(request, socket, head, (client) => {
      client.on('message', (data: Buffer) => this.#onFrame(client, data.toString('utf8')));
      client.on('error', () => undefined); // ends with close
      if (this.script.hasManySessions !== true) this.#open(client);
    });
  }

  #open(client: WebSocket): void {
    this.#session?.terminate();
    this.#session = client;
    this.#offer = [];
    this.#declined.clear();
    this.#grant = undefined;
  }

  #onFrame(client: WebSocket, text: string): void {
    const frame = Frame.parse(JSON.parse(text));
    if (!('method' in frame) || !('id' in frame)) return;
    this.asked.push({ method: frame.method, params: frame.params });
    if (frame.method === 'hello' && this.#session?.readyState !== client.OPEN) this.#open(client);
    try {
      const result = this.#answer(frame.method as Method, frame.params); // an unknown one fails in the table
      client.send(JSON.stringify({ jsonrpc: '2.0', id: frame.id, result }));
      if (frame.method === 'hello') this.#greet();
    } catch (error) {
      const { code, message, retryable } = error as AppError; // nothing else is thrown in here
      const data = { code, message, retryable };
      client.send(JSON.stringify({ jsonrpc: '2.0', id: frame.id, error: { code: -32_000, message, data } }));
    }
    this.#kick();
    for (const change of [...this.#changes]) change();
  }

  #greet(): void {
    this.#revision = 1;
    this.notify({ method: 'snapshot', params: { revision: 1, snapshot: this.#snapshot() } });
  }

  #answer<M extends Method>(method: M, raw: unknown): Result<Method> {
    switch (method) {
      case 'hello':
        this.helloes += 1;
        return { agentId: this.name, epoch: this.#epoch, jobs: [...this.jobs.values()].map(publicOf) };
      case 'job.offer':
        this.#offer = REQUESTS['job.offer'].params.parse(raw).lines;
        this.#declined.clear();
        return {};
      case 'slot.decline':
        if (this.#grant !== undefined) this.#declined.add(this.#grant.key);
        this.#grant = undefined;
        return {};
      case 'job.take':
        return this.#take(REQUESTS['job.take'].params.parse(raw));
      case 'job.cancel':
        return this.#cancel(REQUESTS['job.cancel'].params.parse(raw).jobId);
      case 'job.get': {
        const held = this.jobs.get(REQUESTS['job.get'].params.parse(raw).jobId);
        if (held === undefined) throw new AppError('JOB_NOT_FOUND', 'No such job.');
        return publicOf(held);
      }
      case 'job.ack':
        this.jobs.delete(REQUESTS['job.ack'].params.parse(raw).jobId);
        return {};
      case 'model.load':
      case 'model.offload':
      case 'model.release':
      case 'host.drain':
      case 'host.resume':
        throw new AppError('INVALID_ARGUMENT', `${method} is not in the script`);
    }
  }

  #take({ grantId, job }: Params<'job.take'>): Result<'job.take'> {
    if (this.#grant?.grantId !== grantId) throw new AppError('GRANT_EXPIRED', 'The grant expired.');
    this.#grant = undefined;
    const refusal = this.script.refuse?.(job);
    if (refusal !== undefined) throw new AppError(refusal, 'The script refuses it.');
    const held: Held = { jobId: job.jobId, attempt: job.attempt, state: 'accepted', job };
    this.jobs.set(job.jobId, held);
    this.#running = job.jobId;
    this.#own(this.#run(held));
    const inputs = job.request.kind === 'edit' ? job.request.inputs : [];
    const missing = inputs.filter((one) => !this.uploads.has(one) && !this.script.inputs?.includes(one));
    return { job: publicOf(held), missingInputs: missing };
  }

  #cancel(jobId: string): AgentJob {
    const held = this.jobs.get(jobId);
    if (held === undefined) throw new AppError('JOB_NOT_FOUND', 'No such job.');
    if (held.state === 'accepted' || held.state === 'running') held.state = 'cancelled';
    return publicOf(held);
  }

  async #run(held: Held): Promise<void> {
    const { jobId, attempt, job } = held;
    const epoch = this.#epoch;
    const isGone = (): boolean => epoch !== this.#epoch || held.state === 'cancelled' || this.#stop.signal.aborted;
    const inputs = job.request.kind === 'edit' ? job.request.inputs : [];
    await this.until(
      () => isGone() || inputs.every((one) => this.uploads.has(one) || this.script.inputs?.includes(one)),
    );
    const failure = this.script.fail?.(job, this);
    const steps = failure?.steps ?? job.request.steps;
    if (!isGone()) {
      held.state = 'running';
      this.notify({ method: 'job.progress', params: { jobId, attempt, state: 'running', step: 0, steps, detail: '' } });
    }
    await pause(this.script.runMs ?? 5, this.#stop.signal);
    if (epoch === this.#epoch) this.#running = undefined;
    if (isGone()) {
      if (held.state === 'cancelled') this.notify({ method: 'job.cancelled', params: { jobId, attempt } });
      this.#kick();
      return;
    }
    if (failure !== undefined) {
      held.state = 'failed';
      held.error = failure.error;
      this.notify({ method: 'job.failed', params: { jobId, attempt, error: failure.error } });
    } else {
      held.image = await picture(job);
      held.result = resultOf(held.image, this.script.runMs ?? 5);
      held.state = 'done';
      this.notify({ method: 'job.done', params: { jobId, attempt, result: held.result } });
    }
    this.#kick();
  }

  #kick(): void {
    if (this.script.isManual || this.#running !== undefined || this.#grant !== undefined) return;
    const line = this.#offer.find((one) => !this.#declined.has(`${one.class} ${one.model}`));
    if (line !== undefined && this.#session !== undefined) this.grantNow(line);
  }

  async #answerHttp(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url ?? '';
    const upload = /^\/v1\/inputs\/([0-9a-f]{64})$/.exec(path)?.[1];
    if (upload !== undefined) {
      const chunks: Buffer[] = [];
      for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
      this.uploads.set(upload, Buffer.concat(chunks));
      response.writeHead(201).end();
      return;
    }
    const [, jobId, preview] = /^\/v1\/results\/([^/]+)(\/preview)?$/.exec(path) ?? [];
    const image = jobId === undefined ? undefined : this.jobs.get(jobId)?.image;
    if (image === undefined) {
      response.writeHead(404).end();
      return;
    }
    if (preview === undefined && this.cutResults > 0) {
      this.cutResults -= 1;
      response.writeHead(200, { 'content-length': image.length });
      response.write(image.subarray(0, 20), () => response.destroy());
      return;
    }
    response.writeHead(200, { 'content-length': image.length }).end(image);
  }

  #snapshot(): HostSnapshot {
    const phase = this.#running === undefined ? ('idle' as const) : ('running' as const);
    const isCancelled = this.#running !== undefined && this.jobs.get(this.#running)?.state === 'cancelled';
    const unitMs = (this.script.runMs ?? 5) / 10;
    const one = model({
      model: this.script.model ?? MODEL,
      service: { fixedMs: 0, unitMs, samples: 3 },
      slots: [slot({ phase, isCancelled })],
      ...(this.script.capacity !== undefined && { capacity: this.script.capacity }),
    });
    one.profile.capabilities = ['generate', 'edit'];
    return snapshot({ agentId: this.name, hostname: this.name, models: [one], ...this.script.snap });
  }

  #send(frame: unknown): void {
    this.#session?.send(JSON.stringify(frame));
  }

  #own(work: Promise<void>): void {
    const owned: Promise<void> = work.catch(() => undefined).finally(() => this.#work.delete(owned)); // ends with the test
    this.#work.add(owned);
  }
}

function publicOf({ jobId, attempt, state, result, error }: Held): AgentJob {
  return { jobId, attempt, state, ...(result && { result }), ...(error && { error }) };
}

/** A small real PNG whose colour and size tell jobs apart. */
async function picture(job: Job): Promise<Buffer> {
  const shade = createHash('sha256').update(job.jobId).digest();
  const [r = 0, g = 0, b = 0] = shade;
  return await sharp({ create: { width: 24, height: 16, channels: 3, background: { r, g, b } } })
    .png()
    .toBuffer();
}

function resultOf(image: Buffer, runMs: number): JobResult {
  return {
    sha256: createHash('sha256').update(image).digest('hex'),
    bytes: image.length,
    width: 24,
    height: 16,
    format: 'png',
    runMs,
    gpu: 'Test GPU',
    notes: [],
  };
}
