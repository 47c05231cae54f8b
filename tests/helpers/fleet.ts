import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { pause } from '../../shared/abort.ts';
import { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedHostOptions, SimulatedModel } from '../../scripts/lib/simulated-host.ts';
import { SimulatedHost } from '../../scripts/lib/simulated-host.ts';

/** Its GPUs by their sizes, or, where they are something special, as they stand in the ledger. */
export type HostPlan = Omit<SimulatedHostOptions, 'directory' | 'gpus'> & {
  gpuMiB?: readonly number[];
  gpus?: SimulatedHostOptions['gpus'];
};

/** Simulated hosts and real bridges in one temporary directory; everything ends and is deleted with it. */
export class TestFleet implements AsyncDisposable {
  readonly directory: string;
  /** Where pictures go unless a call says otherwise. */
  readonly output: string;
  readonly hosts: readonly SimulatedHost[];
  readonly #bridges: BridgeClient[] = [];

  private constructor(directory: string, hosts: readonly SimulatedHost[]) {
    this.directory = directory;
    this.output = join(directory, 'out');
    this.hosts = hosts;
  }

  static async start(plans: readonly HostPlan[]): Promise<TestFleet> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-test-'));
    const hosts = await Promise.all(
      plans.map(({ gpuMiB = [24_564], ...plan }) =>
        SimulatedHost.start({
          ...plan,
          directory: join(directory, plan.name),
          gpus: plan.gpus ?? gpuMiB.map((totalMiB) => ({ name: 'Simulated GPU', totalMiB })),
          config: { gpu: { sample_interval: '250ms' }, ...plan.config },
        }),
      ),
    );
    await mkdir(join(directory, 'out'));
    return new TestFleet(directory, hosts);
  }

  host(name: string): SimulatedHost {
    const host = this.hosts.find((candidate) => candidate.name === name);
    if (host === undefined) throw new Error(`no host ${name}`);
    return host;
  }

  /** A bridge with a home of its own, connected to all hosts. `config` adds keys to its bridge.yaml. */
  async bridge(
    config: Record<string, unknown> = {},
    home = `laptop-${this.#bridges.length}`,
    env: Readonly<Record<string, string>> = {},
    enter: readonly string[] = [],
  ): Promise<BridgeClient> {
    const directory = join(this.directory, home);
    await mkdir(directory, { recursive: true });
    const path = join(directory, 'bridge.yaml');
    const hosts = this.hosts.map(({ name, url, token }) => ({ name, url, token }));
    await writeFile(path, stringify({ hosts, output_dir: this.output, roots: [this.directory], ...config }), {
      mode: 0o600,
    });
    const bridge = await BridgeClient.start({ config: path, home: directory, clientName: 'gantry-test', env, enter });
    this.#bridges.push(bridge);
    return bridge;
  }

  /** Names of everything in the output directory, hidden and unfinished files included. */
  async outputFiles(): Promise<string[]> {
    return (await readdir(this.output, { recursive: true })).sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#bridges.map((bridge) => bridge[Symbol.asyncDispose]()));
    await Promise.all(this.hosts.map((host) => host[Symbol.asyncDispose]()));
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

/** A vLLM-Omni model of the simulator: small, quick and drawn at 256 x 256 unless said otherwise. */
export function vllm(model: string, flags: Record<string, number | string | boolean> = {}): SimulatedModel {
  const all: Record<string, number | string | boolean> = {
    'load-ms': 200,
    'step-ms': 20,
    'weights-mib': 8_000,
    'peak-mib': 9_000,
    'residual-mib': 900,
    ...flags,
  };
  return {
    engine: 'vllm-omni',
    model,
    // What an owner would write for a quantised model: the published size is only a guess, and larger than these GPUs.
    vram: `${String(all['weights-mib'])}MiB`,
    args: Object.entries(all).flatMap(([flag, value]) =>
      value === true ? [`--${flag}`] : [`--${flag}`, String(value)],
    ),
  };
}

/** A Step1X-Edit of the simulator: quick, and as large as the real one, so that it needs a large GPU. */
export const STEP1X_EDIT: SimulatedModel = {
  engine: 'step1x-edit',
  model: 'stepfun-ai/Step1X-Edit',
  capabilities: ['edit'],
  args: [
    '--load-ms',
    '100',
    '--step-ms',
    '5',
    '--weights-mib',
    '30000',
    '--peak-mib',
    '34000',
    '--residual-mib',
    '600',
  ],
};

/** Asks again every 50 ms until `check` returns something true; the deadline's error names what was awaited. */
export async function eventually<T>(what: string, check: () => Promise<T | undefined>, withinMs = 60_000): Promise<T> {
  const signal = AbortSignal.timeout(Math.round(withinMs));
  while (!signal.aborted) {
    const value = await check();
    if (value) return value;
    await pause(50, signal);
  }
  throw new Error(`not within ${withinMs} ms: ${what}`);
}

/** True while the process exists and is not a zombie. */
export async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return stat !== '' && !/\) [ZX] /.test(stat);
}

/** Pids of a process and all its descendants, now. */
export async function processTree(root: number): Promise<number[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const parents = new Map<number, number>();
  for (const pid of pids) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    const parent = /\) \S (\d+)/.exec(stat)?.[1];
    if (parent !== undefined) parents.set(pid, Number(parent));
  }
  const tree = [root];
  for (const pid of tree) for (const [child, parent] of parents) if (parent === pid) tree.push(child);
  return tree;
}
