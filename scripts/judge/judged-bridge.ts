import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { SimulatedHost } from '../lib/simulated-host.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';

/** A bridge as a client is configured to start it: a home, a bridge.yaml, and one simulated host that answers. */
export class JudgedBridge implements AsyncDisposable {
  readonly directory: string;
  /** Program and arguments, as in a client's configuration. */
  readonly command: readonly string[];
  readonly env: Record<string, string>;
  readonly #host: SimulatedHost;

  private constructor(directory: string, host: SimulatedHost) {
    this.directory = directory;
    this.#host = host;
    this.command = [process.execPath, resolve('dist/gantry.cjs'), 'bridge'];
    // The clients hand on little of their environment, but all of them hand on the home.
    this.env = { HOME: join(directory, 'home') };
  }

  static async start(): Promise<JudgedBridge> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-judge-'));
    const host = await SimulatedHost.start({
      name: 'sim',
      directory: join(directory, 'sim'),
      gpus: [{ name: 'Simulated GPU', totalMiB: 24_564 }],
      models: { klein: { engine: 'vllm-omni', model: MODEL, args: ['--load-ms', '200', '--step-ms', '400'] } },
    });
    const config = join(directory, 'home', '.config', 'gantry');
    await mkdir(config, { recursive: true });
    const hosts = [{ name: host.name, url: host.url, token: host.token }];
    const output = join(directory, 'out');
    await mkdir(output);
    const yaml = stringify({ hosts, output_dir: output, roots: [directory] });
    await writeFile(join(config, 'bridge.yaml'), yaml, { mode: 0o600 });
    return new JudgedBridge(directory, host);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}
