import { execa } from 'execa';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { stringify } from 'yaml';
import { processesNaming } from './processes-naming.ts';

/**
 * One model as it stands in agent.yaml; `args` may carry the simulator's own flags. Its weights are there, unless it names
 * a `download`: the simulated one is dist/sim/hf.
 */
export type SimulatedModel = {
  engine: 'vllm-omni' | 'step1x-edit';
  model: string;
  args?: readonly string[];
  [key: string]: unknown;
};

export type SimulatedHostOptions = {
  name: string;
  /** Everything of this host lives below here: ledger, configuration, state, logs. */
  directory: string;
  /** As they stand in the ledger (see scripts/sim/lib/ledger.ts); without a UUID they get one. */
  gpus: readonly { name: string; totalMiB: number; [key: string]: unknown }[];
  models: Readonly<Record<string, SimulatedModel>>;
  /** Other keys of agent.yaml. */
  config?: Readonly<Record<string, unknown>>;
  /** More environment for the agent; its servers get none of it. */
  env?: Readonly<Record<string, string>>;
  /** What the agent's command line begins with, to run it somewhere else, for example in a network of its own. */
  enter?: readonly string[];
};

/** One line of the agent's log: its fixed name, the time, and what else it says. */
export type LoggedEvent = { event: string; time: number; [key: string]: unknown };

const DIST = resolve('dist');

/**
 * A GPU host without a GPU: the real `gantry-agent` as a process of its own, with a simulated nvidia-smi and simulated
 * engine programs that share one ledger of VRAM. The agent is not told; it finds programs under the usual names.
 */
export class SimulatedHost implements AsyncDisposable {
  readonly name: string;
  readonly directory: string;
  readonly ledger: string;
  readonly token: string;
  #options: SimulatedHostOptions;
  #agent: ReturnType<typeof spawnAgent> | undefined;
  #port = 0;
  #hasCrashed = false;
  /** Every line the agent logged, newest last. */
  readonly log: string[] = [];

  private constructor(options: SimulatedHostOptions, token: string) {
    this.name = options.name;
    this.directory = options.directory;
    this.ledger = join(options.directory, 'ledger');
    this.token = token;
    this.#options = options;
  }

  /** Writes the host's files, creates a token and starts its agent; resolves once the agent listens. */
  static async start(options: SimulatedHostOptions): Promise<SimulatedHost> {
    const ledger = join(options.directory, 'ledger');
    await mkdir(ledger, { recursive: true });
    const gpus = options.gpus.map((gpu, index) => ({ uuid: `GPU-${options.name}-${index}`, ...gpu, index }));
    await writeFile(join(ledger, 'gpus.json'), JSON.stringify(gpus));
    await writeConfig(options, 0);
    const host = new SimulatedHost(options, await newToken(options, 'simulation'));
    await host.startAgent();
    return host;
  }

  get url(): string {
    return `ws://127.0.0.1:${this.#port}`;
  }

  get pid(): number {
    const pid = this.#agent?.pid;
    if (pid === undefined) throw new Error(`the agent of ${this.name} does not run`);
    return pid;
  }

  /** Of the agent as it is started the next time. */
  set env(env: Readonly<Record<string, string>>) {
    this.#options = { ...this.#options, env };
  }

  get isRunning(): boolean {
    return this.#agent !== undefined;
  }

  /** What the agent logged under this name, oldest first; `fromLine` skips what `log` had before. */
  events(name: string, { fromLine = 0 }: { fromLine?: number } = {}): LoggedEvent[] {
    return this.log.slice(fromLine).flatMap((line) => {
      const event = JSON.parse(line) as LoggedEvent; // one JSON object a line is what the agent's log promises
      return event.event === name ? [event] : [];
    });
  }

  /** What nvidia-smi does from now on instead of answering (see scripts/sim/nvidia-smi.ts); undefined ends it. */
  async breakNvidiaSmi(fault: Readonly<Record<string, unknown>> | undefined): Promise<void> {
    const path = join(this.ledger, 'nvidia-smi.fault.json');
    if (fault === undefined) return await rm(path, { force: true });
    await writeFile(`${path}.tmp`, JSON.stringify(fault));
    await rename(`${path}.tmp`, path);
  }

  /** A token for one more laptop; the running agent knows it at once. */
  async addToken(name: string): Promise<string> {
    return await newToken(this.#options, name);
  }

  /** Restarts the agent with other models, and other keys in place of those it had. */
  async configure(models: SimulatedHostOptions['models'], config: SimulatedHostOptions['config'] = {}): Promise<void> {
    await this.stopAgent();
    this.#options = { ...this.#options, models, config: { ...this.#options.config, ...config } };
    await this.startAgent();
  }

  /** Starts the agent, on the port it had before if it had one. `keepsConfig`: with agent.yaml as somebody changed it. */
  async startAgent({ keepsConfig = false }: { keepsConfig?: boolean } = {}): Promise<void> {
    if (!keepsConfig) await writeConfig(this.#options, this.#port);
    const agent = spawnAgent(this.#options, this.ledger);
    this.#agent = agent;
    this.#hasCrashed = false;
    const lines = createInterface({ input: agent.stdout });
    this.#port = await new Promise<number>((listening, failed) => {
      lines.on('line', (line) => {
        this.log.push(line);
        const port = portOf(line);
        if (port !== undefined) listening(port);
      });
      lines.once('close', () =>
        failed(new Error(`the agent of ${this.name} ended:\n${this.log.slice(-5).join('\n')}`)),
      );
    });
  }

  /** Ends the agent: SIGTERM as systemd would, or SIGKILL as a crash. Resolves with its exit code when it is gone. */
  async stopAgent(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<number | undefined> {
    const agent = this.#agent;
    if (agent === undefined) return undefined;
    this.#agent = undefined;
    this.#hasCrashed = signal === 'SIGKILL';
    agent.kill(signal);
    return (await agent).exitCode;
  }

  /** What the host's nvidia-smi prints. */
  async nvidiaSmi(...args: string[]): Promise<string> {
    const { stdout } = await execa(join(DIST, 'sim', 'nvidia-smi'), args, { env: { GANTRY_SIM_LEDGER: this.ledger } });
    return stdout;
  }

  /** Pids among the compute apps: every process that holds VRAM on this host. */
  async computePids(): Promise<number[]> {
    const rows = await this.nvidiaSmi('--query-compute-apps=pid', '--format=csv,noheader,nounits');
    return rows.split('\n').filter(Boolean).map(Number);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stopAgent();
    if (!this.#hasCrashed) return;
    // No next agent comes to end what this one left running.
    const left = (await processesNaming(this.directory)).filter(({ pid }) => pid !== process.pid);
    for (const { pid } of left) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended by itself: a worker follows its leader.
      }
    }
  }
}

async function newToken(options: SimulatedHostOptions, name: string): Promise<string> {
  const command = [join(DIST, 'gantry-agent.mjs'), 'tokens', 'add', name, '--config', configPath(options)];
  return (await execa('node', command)).stdout.trim();
}

function spawnAgent(options: SimulatedHostOptions, ledger: string) {
  const [command = '', ...rest] = [...(options.enter ?? []), join(DIST, 'gantry-agent.mjs'), 'run'];
  return execa(command, [...rest, '--config', configPath(options)], {
    env: { ...options.env, GANTRY_SIM_LEDGER: ledger, PATH: pathOf(options) },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'inherit',
    buffer: false,
    reject: false,
    forceKillAfterDelay: false, // after SIGTERM its jobs and servers have their grace, as under systemd
  });
}

/** What the host was given of its own comes first. */
function pathOf({ env }: SimulatedHostOptions): string {
  return [env?.['PATH'], join(DIST, 'sim'), process.env['PATH']].filter(Boolean).join(':');
}

function configPath({ directory }: SimulatedHostOptions): string {
  return join(directory, 'agent.yaml');
}

async function writeConfig(options: SimulatedHostOptions, port: number): Promise<void> {
  const { name, directory, models, config } = options;
  const env = { GANTRY_SIM_LEDGER: join(directory, 'ledger'), GANTRY_SIM_HOST: name };
  const entries = Object.entries(models).map(([alias, { env: own, ...model }]) => [
    alias,
    {
      command: commandOf(model.engine),
      download: 'none',
      ...model,
      env: { ...env, ...(typeof own === 'object' ? own : {}) },
    },
  ]);
  const yaml = stringify({
    listen: `127.0.0.1:${port}`,
    state_dir: join(directory, 'state'),
    log_dir: join(directory, 'logs'),
    models: Object.fromEntries(entries) as Record<string, unknown>, // fromEntries of mixed tuples is `any` by its own types
    ...config,
  });
  await writeFile(configPath(options), yaml);
}

function commandOf(engine: SimulatedModel['engine']): string[] {
  return engine === 'vllm-omni' ? [join(DIST, 'sim', 'vllm-omni'), 'serve'] : [join(DIST, 'sim', 'step1x-edit')];
}

function portOf(line: string): number | undefined {
  if (!line.includes('"listening"')) return undefined;
  const event: unknown = JSON.parse(line);
  return typeof event === 'object' && event !== null && 'port' in event && typeof event.port === 'number'
    ? event.port
    : undefined;
}
