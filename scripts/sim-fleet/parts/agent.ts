import type { WebSocket as RealWebSocket } from 'ws';
import type { HostSnapshot } from '../../../shared/host-snapshot.ts';
import type { Log } from '../../../shared/log.ts';
import { Drain } from '../../../agent/job/drain.ts';
import { Exchange } from '../../../agent/job/exchange.ts';
import { InputStore } from '../../../agent/job/input-store.ts';
import { Journal } from '../../../agent/job/journal.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import { BridgeSession } from '../../../agent/rpc/bridge-session.ts';
import { StatusFeed } from '../../../agent/rpc/status-feed.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { contentOf } from '../world/disk.ts';
import type { HttpReply } from '../world/network.ts';
import { network } from '../world/network.ts';
import type { Machine, Process } from '../world/world.ts';
import { world } from '../world/world.ts';
import type { HostPlan, Poison } from './plan.ts';
import type { GpuTemper, ServersWatch } from './servers.ts';
import { SimulatedServers } from './servers.ts';

export const AGENT_STATE = '/state';
const TICK_MS = 5_000;
/** A third of the usual: jobs and loads are shorter here, too. */
const TURN_MS = 10_000;
const CLEAR_UP_MS = 300;
const JOB_GRACE_MS = 30_000;

export type AgentOptions = {
  host: HostPlan;
  machine: Machine;
  temper: GpuTemper;
  log: Log;
  poisonOf: (jobName: string) => Poison;
  watch: ServersWatch & { onListen: () => void; onStopped: () => void };
};

/** What agent/agent.ts puts together, with simulated GPUs: one run of the program gantry-agent. */
export class SimulatedAgent {
  readonly process: Process;
  readonly #options: AgentOptions;
  readonly #sessions = new Set<BridgeSession>();
  exchange: Exchange | undefined;
  servers: SimulatedServers | undefined;
  #journal: Journal | undefined;
  #status: StatusFeed | undefined;

  constructor(options: AgentOptions) {
    this.#options = options;
    this.process = world().spawn(options.machine, options.host.name);
  }

  async start(): Promise<void> {
    const { host, machine, temper, watch, poisonOf, log } = this.#options;
    const journal = await Journal.open({ dir: `${AGENT_STATE}/journal`, log });
    this.#journal = journal;
    const pictures = new PictureProcess();
    const results = await ResultStore.open({
      dir: `${AGENT_STATE}/results`,
      quotaBytes: LIMITS.resultQuotaBytes.value,
      keptMs: LIMITS.resultKeptMs.value,
      pictures,
      log,
    });
    const inputs = await InputStore.open({ dir: `${AGENT_STATE}/inputs`, quotaBytes: 1e9, pictures, log });
    const drain = await Drain.open({ stateDir: AGENT_STATE, log });
    const servers = new SimulatedServers({ host, process: this.process, temper, watch, poisonOf });
    this.servers = servers;
    const exchange: Exchange = new Exchange({
      ...{ residency: servers, journal, results, inputs, drain, log, hostname: machine.name },
      times: {
        grantMs: LIMITS.grantMs.value,
        inputSilenceMs: 60_000,
        turnMs: TURN_MS,
        moveAnswerMs: 40_000,
      },
      isStarting: true,
      isSimulated: () => true,
      onChange: () => status.changed(),
    });
    this.exchange = exchange;
    servers.onChange = () => {
      exchange.kick();
      status.changed();
    };
    const phases = (): string => [...exchange.slots().values()].map(({ phase }) => phase).join();
    const status: StatusFeed = new StatusFeed({
      ...{ build: () => this.#snapshot(), atOnce: phases, minGapMs: host.statusGapMs },
    });
    this.#status = status;
    const parts = { exchange, status, agentId: machine.name, epoch: world().rng.uuid(), log };
    network().listen({
      process: this.process,
      onSocket: (socket, token) => {
        // The simulated socket does all that a session asks of a real one.
        const session = new BridgeSession(socket as unknown as RealWebSocket, {
          token: { id: token, role: 'operator' },
          parts,
        });
        this.#sessions.add(session);
        socket.once('close', () => this.#sessions.delete(session));
      },
      onRequest: (request) => this.#serve(results, request),
    });
    watch.onListen();
    this.#tick();
    world().timer(CLEAR_UP_MS, this.process, () => exchange.begin());
  }

  /** SIGTERM: running jobs have their grace, then the process ends. */
  async stop(): Promise<void> {
    await this.exchange?.shutdown({ jobGraceMs: JOB_GRACE_MS });
    this.#options.watch.onStopped();
    for (const session of this.#sessions) session.goAway();
    await this.#status?.[Symbol.asyncDispose]();
    await this.exchange?.[Symbol.asyncDispose]();
    await this.#journal?.[Symbol.asyncDispose]();
    this.process.die();
  }

  #tick(): void {
    for (const session of this.#sessions) {
      session.tick({ pingEveryMs: LIMITS.pingEveryMs.value, silenceMs: LIMITS.silenceMs.value, undrainedMs: 30_000 });
    }
    world().timer(TICK_MS, this.process, () => this.#tick());
  }

  #snapshot(): HostSnapshot {
    const { servers, exchange } = this;
    if (servers === undefined || exchange === undefined) throw new Error('the agent has not started');
    return {
      ...{ agentId: this.#options.machine.name, hostname: this.#options.machine.name, agentVersion: '0.0.0' },
      ...{ isSimulated: true, isDraining: exchange.isDraining, driver: null, problems: [] },
      gpus: servers.gpuStatus(),
      memory: { totalMiB: 64_000, freeMiB: 32_000 },
      disk: { freeMiB: null },
      models: servers.modelStatus(exchange.slots()),
      offered: exchange.offered(),
    };
  }

  /** What agent/http answers to GET: whole results, the missing rest of one, and previews. */
  async #serve(
    results: ResultStore,
    request: { path: string; token: string; headers: Record<string, string> },
  ): Promise<HttpReply> {
    const [, jobId = '', part] = /^\/v1\/results\/([^/]+)(\/preview)?$/.exec(request.path) ?? [];
    const found = results.find(request.token, jobId);
    const node = found && this.#options.machine.disk.find(part === undefined ? found.path : found.previewPath);
    if (found === undefined || node?.kind !== 'file') {
      const error = { code: 'JOB_NOT_FOUND', message: 'There is no such result.', retryable: false };
      return { status: 404, headers: {}, body: Buffer.from(JSON.stringify({ error })) };
    }
    const body = Buffer.from(contentOf(node));
    const etag = part === undefined ? `"${found.sha256}"` : `"${found.sha256}-preview"`;
    const headers: Record<string, string> = { etag, 'accept-ranges': 'bytes' };
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers['range'] ?? '')?.[1] ?? '0');
    const isSame = (request.headers['if-range'] ?? etag) === etag;
    if (from === 0 || !isSame || from >= body.length) {
      return { status: 200, headers: { ...headers, 'content-length': String(body.length) }, body };
    }
    const range = `bytes ${from}-${body.length - 1}/${body.length}`;
    return { status: 206, headers: { ...headers, 'content-range': range }, body: body.subarray(from) };
  }
}
