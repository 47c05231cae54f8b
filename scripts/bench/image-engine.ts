import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { freePort } from '../../agent/server/free-port.ts';
import { pause } from '../../shared/abort.ts';
import { openHttp } from '../../shared/http-client.ts';
import type { Picture } from './image-fixture.ts';

/** What an engine needs to answer with a picture at once and say nothing about it. */
export function answering({ path }: Picture, generateMs = 0): string[] {
  const quick = ['--load-ms', '20', '--generate-ms', String(generateMs), '--no-progress-bar'];
  return ['--answer-file', path, ...quick, '--disable-uvicorn-access-log'];
}

/** A simulated engine on its own, as somebody would ask it who has no gantry. */
export class BareEngine implements AsyncDisposable {
  readonly url: string;
  readonly #process: ReturnType<typeof spawn>;

  private constructor(url: string, process: ReturnType<typeof spawn>) {
    this.url = url;
    this.#process = process;
  }

  static async start(o: {
    directory: string;
    picture: Picture;
    generateMs?: number;
    signal: AbortSignal;
  }): Promise<BareEngine> {
    await mkdir(o.directory, { recursive: true });
    const gpu = { uuid: 'GPU-bare', name: 'Simulated GPU', totalMiB: 24_576, index: 0 };
    await writeFile(join(o.directory, 'gpus.json'), JSON.stringify([gpu]));
    const port = await freePort('127.0.0.1');
    const engine = new BareEngine(
      `http://127.0.0.1:${port}/v1/images/generations`,
      spawn(port, o.directory, answering(o.picture, o.generateMs)),
    );
    try {
      while (!(await isUp(`http://127.0.0.1:${port}/health`, o.signal))) await pause(50, o.signal);
      return engine;
    } catch (error) {
      await engine[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#process;
  }
}

function spawn(port: number, ledger: string, args: readonly string[]) {
  const own = ['serve', 'bench/model', '--omni', '--host', '127.0.0.1', '--port', String(port)];
  return execa(resolve('dist/sim/vllm-omni'), [...own, ...args], {
    env: { GANTRY_SIM_LEDGER: ledger },
    stdio: 'ignore',
    reject: false,
  });
}

async function isUp(url: string, signal: AbortSignal): Promise<boolean> {
  signal.throwIfAborted();
  try {
    const answer = await openHttp(url, { signal, deadlineMs: 2_000 });
    answer.body.resume();
    return answer.status === 200;
  } catch {
    return false; // not yet
  }
}
