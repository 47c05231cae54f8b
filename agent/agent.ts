import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { mkdir, readFile, rename } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { writeDurable } from '../shared/durable-file.ts';
import { Uuid } from '../shared/job.ts';
import type { HostSnapshot } from '../shared/host-snapshot.ts';
import type { Log } from '../shared/log.ts';
import type { HostResult, Role, TokenEntry } from '../shared/protocol.ts';
import { LIMITS } from '../shared/limits.ts';
import { AuditLog } from './audit-log.ts';
import { certificateOf } from './certificate.ts';
import type { AgentConfig } from './config.ts';
import { DamagedFiles } from './damaged-files.ts';
import { GpuSampler } from './gpu/gpu-sampler.ts';
import { GroupSocket, groupSocketPath } from './group-socket.ts';
import { hostProblems, readiness } from './host-problems.ts';
import { UPLOAD_PACE } from './http/inputs.ts';
import { route } from './http/routes.ts';
import { Drain } from './job/drain.ts';
import { Exchange } from './job/exchange.ts';
import { InputStore } from './job/input-store.ts';
import { Journal } from './job/journal.ts';
import { PictureProcess } from './job/picture-process.ts';
import { ResultStore } from './job/result-store.ts';
import { LiveConfig } from './live-config.ts';
import { Residency } from './model/residency.ts';
import { Pairing } from './pairing.ts';
import { inviteOf, reachText } from './reach.ts';
import type { AuditEntry } from './rpc/audit.ts';
import { HostSocket } from './rpc/host-socket.ts';
import { RpcListener } from './rpc/rpc-listener.ts';
import { StatusFeed } from './rpc/status-feed.ts';
import { isNameless, withServedIds } from './served-ids.ts';
import { SingleInstance } from './single-instance.ts';
import { HostStatus, isSimulated } from './status.ts';
import type { StoredToken } from './tokens.ts';
import { TokenStore } from './tokens.ts';

export type AgentOptions = {
  log: Log;
  signal: AbortSignal;
  /** Reads the configuration again; without it a reload finds what the agent was started with. */
  readConfig?: (() => Promise<AgentConfig>) | undefined;
  /** Told how many bridges are linked, whenever one comes or goes. */
  onLinks?: ((count: number) => void) | undefined;
};

/**
 * The daemon: builds every part, and disposes them in reverse. When `start` resolves the port is open. The servers that a
 * crashed predecessor left are ended beside that, and no job is granted and no model moved before they are gone: the agent
 * answers whatever nvidia-smi does meanwhile.
 */
export class Agent implements AsyncDisposable {
  readonly #parts: AsyncDisposable[] = [];
  readonly #stop = new AbortController();
  readonly #config: AgentConfig;
  readonly #log: Log;
  #exchange: Exchange | undefined;
  #residency: Residency | undefined;
  #listener: RpcListener | undefined;
  #liveConfig: LiveConfig | undefined;
  #host: HostStatus | undefined;
  #clearing: Promise<void> = Promise.resolve();

  private constructor(config: AgentConfig, log: Log) {
    this.#config = config;
    this.#log = log;
  }

  /** Rejects when `signal` aborts before the start is complete; nothing is left then either. */
  static async start(config: AgentConfig, { log, signal, ...options }: AgentOptions): Promise<Agent> {
    const agent = new Agent(config, log);
    try {
      await agent.#start({ ...options, signal: AbortSignal.any([agent.#stop.signal, signal]) });
      return agent;
    } catch (error) {
      await agent[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Who can reach the port, for the log. */
  get reach(): string {
    return reachText({ ...this.#config, listen: this.address });
  }

  get address(): { host: string; port: number } {
    if (this.#listener === undefined) throw new Error('the agent does not listen');
    return this.#listener.address;
  }

  /** What this host is and does right now. */
  snapshot(): HostSnapshot {
    if (this.#host === undefined) throw new Error('the agent has not started');
    return this.#host.snapshot();
  }

  /** Takes over what agent.yaml says now, as far as that is possible while the agent runs. */
  reload(): Promise<HostResult<'host.reload'>> {
    if (this.#liveConfig === undefined) throw new Error('the agent has not started');
    return this.#liveConfig.reload();
  }

  /** No new work; the running job has its grace; then every model server, every link and every file is closed. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    await this.#clearing.catch(() => undefined); // a failure is the process' end, and seen there
    const { jobGraceMs } = this.#config.times;
    await this.#step('jobs', async () => await this.#exchange?.shutdown({ jobGraceMs }));
    await this.#step('servers', async () => await this.#residency?.shutdown());
    for (const part of this.#parts.reverse())
      await this.#step(part.constructor.name, () => part[Symbol.asyncDispose]());
  }

  /** A step that fails is logged and does not keep the others from being taken: a server left running holds its VRAM. */
  async #step(step: string, end: () => PromiseLike<void>): Promise<void> {
    try {
      await end();
    } catch (error) {
      this.#log.error({ event: 'shutdown-step-failed', step, err: error });
    }
  }

  async #start({ signal, readConfig, onLinks }: Omit<AgentOptions, 'log' | 'isFromManager'>): Promise<void> {
    const { stateDir, logDir, logs, gpu, ramReserveMiB, times, listen, names, tls } = this.#config;
    const log = this.#log;
    const instance = this.#own(await SingleInstance.acquire(stateDir));
    await mkdir(logDir, { recursive: true });
    const tokens = this.#own(new TokenStore({ stateDir, onRevoked: (tokenId) => this.#forget(tokenId) }));
    await tokens.refresh();
    const auditLog = this.#own(new AuditLog({ stateDir, log }));
    const audit = (entry: AuditEntry): void => auditLog.note(entry);
    const certificate = tls ? await certificateOf(stateDir, log) : undefined;
    const pairing = new Pairing({ tokens });
    const journalDir = join(stateDir, 'journal');
    const journal = this.#own(await Journal.open({ dir: journalDir, log }));
    const pictures = this.#own(new PictureProcess());
    const results = await ResultStore.open({
      dir: join(stateDir, 'results'),
      quotaBytes: LIMITS.resultQuotaBytes.value,
      keptMs: LIMITS.resultKeptMs.value,
      pictures,
      log,
    });
    const inputs = await InputStore.open({
      dir: join(stateDir, 'inputs'),
      quotaBytes: LIMITS.resultQuotaBytes.value,
      pictures,
      log,
    });
    const models = await withServedIds(this.#config.models, { known: [], signal, log });
    for (const { alias, launch } of models.filter(isNameless)) {
      log.warn({ event: 'attached-server-down', model: alias, url: launch.url }); // it is asked again until it answers
    }
    const drain = await Drain.open({ stateDir, log });

    const agentId = await agentIdOf(stateDir);
    const damaged = new DamagedFiles([stateDir, journalDir]);
    await damaged.look();

    // These are called from events only. Nothing is awaited before the last part they name is there.
    const onChange = (): void => {
      residency.look();
      status.changed();
    };
    const onMoved = (): void => {
      exchange.kick();
      status.changed();
    };
    const sampler = this.#own(
      new GpuSampler({
        nvidiaSmi: gpu.nvidiaSmi,
        sampleIntervalMs: gpu.sampleIntervalMs,
        silenceMs: gpu.silenceMs,
        queryTimeoutMs: gpu.queryTimeoutMs,
        log,
        onSample: onMoved, // what others gave back may be what a line waits for
      }),
    );
    const residency = this.#own(
      new Residency({
        ...{ models, sampler, stateDir, logDir, logs, ramReserveMiB, times, log },
        reserveMiB: gpu.reserveMiB,
        yieldsToForeign: gpu.yieldsToForeign,
        isDraining: () => drain.isDraining,
        isTaken: (slotId) => exchange.isTaken(slotId),
        onChange: onMoved,
      }),
    );
    this.#residency = residency;
    const exchange: Exchange = this.#own(
      new Exchange({
        residency,
        journal,
        results,
        inputs,
        drain,
        times,
        isStarting: true,
        isSimulated: () => isSimulated(sampler),
        hostname: hostname(),
        log,
        onChange,
      }),
    );
    this.#exchange = exchange;
    const facts = { exchange, sampler, residency, damaged };
    const problems = (): string[] => hostProblems(facts);
    const host = new HostStatus({ agentId, stateDir, sampler, residency, exchange, problems, log, onChange });
    this.#host = host;
    // A bridge plans by when slots are free, so their jobs' starts and ends are not held back.
    const phases = (): string => [...exchange.slots().values()].map(({ phase }) => phase).join();
    const status: StatusFeed = this.#own(new StatusFeed({ build: () => host.snapshot(), atOnce: phases }));

    const known = new Set((await tokens.list()).map(({ id }) => id));
    const owners = new Set([journal, results, inputs].flatMap((store) => [...store.tokenIds()]));
    // Revoked while no agent was there to see it. Where the tokens were damaged, nobody knows that of those that are gone.
    const isSure = !damaged.has('tokens.json');
    for (const tokenId of owners) if (isSure && !known.has(tokenId)) await exchange.forget(tokenId);
    for (const message of journal.warnings) log.warn({ event: 'journal-warning', message });

    const isReady = readiness(facts);
    const parts = {
      inputs,
      results,
      pace: UPLOAD_PACE,
      inputArrived: (tokenId: string, sha256: string) => exchange.inputArrived(tokenId, sha256),
      readiness: isReady,
      metrics: () => ({
        snapshot: host.snapshot(),
        jobs: exchange.jobCounts,
        evictions: residency.evictions(),
        isReady: isReady().length === 0,
        links: this.#listener?.links ?? 0,
      }),
      redeem: async (asked: { code: string; name: string }, { socket }: IncomingMessage) => {
        const { token, role, name } = await pairing.redeem(asked);
        audit({ action: 'pair', outcome: 'ok', from: socket.remoteAddress ?? '', object: name, role });
        log.info({ event: 'paired', name, role });
        return { token, role, agentId };
      },
    };
    this.#listener = this.#own(
      await RpcListener.open({
        ...listen,
        names,
        authenticate: (text) => tokens.check(text),
        validTokens: async () => {
          await tokens.refresh();
          return (token) => tokens.isValid(token);
        },
        onRequest: (request, response, access) => route({ request, response, parts }, access),
        onLinks,
        audit,
        tls: certificate,
        session: {
          exchange,
          status,
          agentId,
          epoch: randomUUID(),
          log,
        },
        times,
        log,
      }),
    );
    const config = { ...this.#config, models };
    const read = readConfig ?? (() => Promise.resolve(config));
    this.#liveConfig = this.#own(new LiveConfig({ config, read, residency, log }));
    const commands = {
      ...{ exchange, snapshot: () => host.snapshot(), reload: () => this.reload() },
      invite: (role: Role) => inviteOf(pairing.invite(role), { role, tls, names, listen: this.address, certificate }),
      tokens: {
        list: async () => (await tokens.list()).map(entryOf),
        revoke: (name: string) => tokens.revoke(name),
      },
    };
    const hostSocket = this.#own(new HostSocket({ context: commands, audit, log }));
    instance.serve((socket) => hostSocket.accept(socket));
    await this.#openGroupDoor((socket) => hostSocket.accept(socket));
    // A failure is a defect: nobody handles it, and main.ts ends the process for that.
    this.#clearing = this.#clearUp({ residency, exchange, damaged, signal });
  }

  async #clearUp(o: {
    residency: Residency;
    exchange: Exchange;
    damaged: DamagedFiles;
    signal: AbortSignal;
  }): Promise<void> {
    const startMs = performance.now();
    try {
      await o.residency.start(o.signal);
      await o.damaged.look(); // it has read the files of its own
    } catch (error) {
      if (o.signal.aborted) return; // the agent stops already
      throw error;
    }
    o.exchange.begin();
    this.#log.info({ event: 'started', tookMs: Math.round(performance.now() - startMs) });
  }

  /** Without it the agent works all the same, for its own user and root. */
  async #openGroupDoor(serve: (socket: Socket) => void): Promise<void> {
    const path = groupSocketPath(this.#config.stateDir);
    if (path === undefined) return;
    try {
      this.#own(await GroupSocket.open(path, serve));
    } catch (error) {
      this.#log.warn({ event: 'group-socket-closed', path, err: error });
    }
  }

  /** What a revoked token made goes with it. */
  #forget(tokenId: string): void {
    this.#log.info({ event: 'token-revoked', tokenId });
    const failed = (error: unknown): void => this.#log.error({ event: 'forget-failed', tokenId, err: error });
    this.#listener?.revoked(tokenId);
    void this.#exchange?.forget(tokenId).catch(failed); // nobody waits for it, and its failure is logged
  }

  #own<P extends AsyncDisposable>(part: P): P {
    this.#parts.push(part);
    return part;
  }
}

/** What a person sees of a token. */
function entryOf({ name, role, createdAt, lastUsedAt }: StoredToken): TokenEntry {
  return { name, role, createdAt, lastUsedAt };
}

/** The same in every run on this state directory. */
async function agentIdOf(stateDir: string): Promise<string> {
  const path = join(stateDir, 'agent-id');
  const text = await readFile(path, 'utf8').catch(() => undefined); // absent at the first start
  const known = Uuid.safeParse(text?.trim());
  if (known.success) return known.data;
  if (text !== undefined) await rename(path, `${path}.corrupt-${Date.now()}`);
  const made = randomUUID();
  await writeDurable(path, `${made}\n`);
  return made;
}
