import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { untilAborted } from '../../../shared/abort.ts';
import { ask } from './client.ts';
import { SPEEDS, uniformJobs } from './fixture.ts';
import type { FleetModel } from './fleet.ts';
import { engineFlags, ONE_MODEL } from './fleet.ts';

const CALIBRATION_JOBS = 5;
const STARTED = /Starting vLLM API server .* on http:\/\/127\.0\.0\.1:(\d+)/;

/** The engines of the fixture without agents, for the peers: the same program with the same flags. */
export class BareEngines implements AsyncDisposable {
  readonly ports: readonly number[];
  readonly model: FleetModel;
  readonly #children: readonly ReturnType<typeof spawnEngine>[];

  private constructor(o: { ports: readonly number[]; model: FleetModel; children: ReturnType<typeof spawnEngine>[] }) {
    this.ports = o.ports;
    this.model = o.model;
    this.#children = o.children;
  }

  static async start(directory: string, signal: AbortSignal): Promise<BareEngines> {
    const [model] = ONE_MODEL;
    if (model === undefined) throw new Error('the fixture has a model');
    await mkdir(directory, { recursive: true });
    const gpus = SPEEDS.map((_, index) => ({ uuid: `GPU-${index}`, index, name: 'Simulated GPU', totalMiB: 24_564 }));
    await writeFile(join(directory, 'gpus.json'), JSON.stringify(gpus));
    const children = SPEEDS.map((speed, index) => spawnEngine({ directory, model, speed, index }));
    try {
      const ports = await untilAborted(Promise.all(children.map(portOf)), signal);
      return new BareEngines({ ports, model, children });
    } catch (error) {
      await end(children);
      throw error;
    }
  }

  /**
   * Work per time of each engine, asked directly and one at a time, all four side by side as in a batch: what its nominal
   * speed comes to on this machine in this run.
   */
  async rates(signal: AbortSignal): Promise<number[]> {
    return await Promise.all(
      this.ports.map(async (port) => {
        const runs: number[] = [];
        for (const job of uniformJobs(CALIBRATION_JOBS)) {
          runs.push(job.workMs / (await ask(job, { target: { port }, model: this.model.model, signal })));
        }
        return Math.max(...runs); // whatever else the machine does only makes a run longer
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#children);
  }
}

function spawnEngine(o: { directory: string; model: FleetModel; speed: number; index: number }) {
  const { directory, model, speed, index } = o;
  const log = join(directory, `requests-${index}.jsonl`);
  const own = [
    'serve',
    model.model,
    '--omni',
    '--host',
    '127.0.0.1',
    '--port',
    '0',
    '--enable-sleep-mode',
    '--log-stats',
  ];
  return execa(resolve('dist/sim/vllm-omni'), [...own, ...engineFlags({ speed, log, model })], {
    env: { GANTRY_SIM_LEDGER: directory, GANTRY_SIM_HOST: `engine-${index}`, CUDA_VISIBLE_DEVICES: String(index) },
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'pipe',
    buffer: false,
    reject: false,
  });
}

/** Reads its log to the end, so that it never waits for a reader. */
async function portOf(child: ReturnType<typeof spawnEngine>): Promise<number> {
  const lines = createInterface({ input: child.stderr });
  return await new Promise((found, failed) => {
    const tail: string[] = [];
    lines.on('line', (line) => {
      const [, port] = STARTED.exec(line) ?? [];
      if (port !== undefined) found(Number(port));
      else if (tail.push(line) > 5) tail.shift();
    });
    lines.once('close', () => failed(new Error(`a simulated engine ended:\n${tail.join('\n')}`)));
  });
}

async function end(children: readonly ReturnType<typeof spawnEngine>[]): Promise<void> {
  for (const child of children) child.kill('SIGTERM');
  await Promise.all(children);
}
