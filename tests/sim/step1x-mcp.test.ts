import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import sharp from 'sharp';
import { expect, test } from 'vitest';
import { Deadline, untilAborted } from '../../shared/abort.ts';
import { eventually, kill, SimHost, valueAt } from './sim-server.ts';

test('--mcp: five tools over standard input and output, with a model of its own; failures are no MCP errors', async () => {
  await using host = await SimHost.create();
  const path = await pictureIn(host);
  await using client = new McpClient(host, []);
  expect(await client.ask('initialize', HELLO)).toMatchObject({ result: { serverInfo: { name: 'step1x-edit' } } });
  expect(valueAt(await client.ask('tools/list', {}), 'result.tools')).toMatchObject(
    ['edit_image', 'batch_edit_images', 'get_gpu_status', 'offload_gpu', 'release_gpu'].map((name) => ({ name })),
  );
  const edited = await client.call('edit_image', { image_path: path, prompt: 'snow', num_steps: 2, seed: 5 });
  expect(edited).toMatchObject({ status: 'success', message: 'Image edited successfully', metadata: { seed: 5 } });
  expect(await sharp(join(host.dir, 'output_in.png')).metadata()).toMatchObject({ width: 60, height: 40 });
  expect(host.ledger.entries().map(({ pid }) => pid)).toEqual([client.pid]);
  expect(await client.call('get_gpu_status', {})).toMatchObject({ gpu_status: { model_location: 'CPU' } });
  expect(await client.call('offload_gpu', {})).toMatchObject({ message: 'GPU offloaded. Model now on CPU' });
  expect(await client.call('release_gpu', {})).toMatchObject({ gpu_status: { model_location: 'Unloaded' } });
  const failed = await client.ask('tools/call', {
    name: 'edit_image',
    arguments: { image_path: '/none', prompt: 'x' },
  });
  expect(failed).toMatchObject({ result: { isError: false } });
  expect(String(valueAt(failed, 'result.content.0.text'))).toMatch(/^\{"status":"error","error":"ENOENT/);
  expect(client.stray).toEqual([]);
});

test('--stray-prints: lines between the messages, one for each picture of a batch and one for each edit', async () => {
  await using host = await SimHost.create();
  const path = await pictureIn(host);
  await using client = new McpClient(host, ['--stray-prints']);
  await client.ask('initialize', HELLO);
  const paths = [path, '/none'];
  expect(await client.call('batch_edit_images', { image_paths: paths, prompts: 'snow', num_steps: 1 })).toMatchObject({
    status: 'partial',
    summary: { total: 2, successes: 1, failures: 1 },
  });
  expect(client.stray).toEqual([
    'Processing image 1/2...',
    expect.stringMatching(/^Done in [\d.]+s\.$/),
    'Processing image 2/2...',
  ]);
});

test('it ends when its client goes', async () => {
  await using host = await SimHost.create();
  await using client = new McpClient(host, ['--fork']);
  await client.ask('initialize', HELLO);
  client.leave();
  await eventually('it has ended', () => client.exitCode !== null);
  expect(client.exitCode).toBe(0);
});

const HELLO = { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'test', version: '1' } };

/** A client that skips what is no message, because a real edit prints. */
class McpClient implements AsyncDisposable {
  readonly #child;
  readonly #exited: Promise<unknown>;
  readonly #waiting = new Map<number, (answer: unknown) => void>();
  readonly stray: string[] = [];
  #lastId = 0;

  constructor(host: SimHost, args: string[]) {
    const quick = ['--mcp', '--load-ms', '20', '--generate-ms', '20'];
    this.#child = spawn('dist/sim/step1x-edit', [...quick, ...args], {
      env: { PATH: process.env['PATH'], GANTRY_SIM_LEDGER: host.dir },
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    this.#exited = once(this.#child, 'exit');
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#read(line));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  ask(method: string, params: object): Promise<unknown> {
    this.#lastId += 1;
    const id = this.#lastId;
    this.#child.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`);
    const patience = new Deadline({ ms: 8_000 });
    const answer = new Promise((resolve) => this.#waiting.set(id, resolve));
    return untilAborted(answer, patience.signal).finally(() => patience[Symbol.dispose]());
  }

  /** What a tool says, which is text in JSON. */
  async call(name: string, args: object): Promise<unknown> {
    const answer = await this.ask('tools/call', { name, arguments: args });
    const said: unknown = JSON.parse(String(valueAt(answer, 'result.content.0.text')));
    return said;
  }

  leave(): void {
    this.#child.stdin.end();
  }

  #read(line: string): void {
    if (!line.startsWith('{')) {
      this.stray.push(line);
      return;
    }
    const message: unknown = JSON.parse(line);
    this.#waiting.get(Number(valueAt(message, 'id')))?.(message);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    kill(this.pid);
    await this.#exited;
    this.#child.stdout.destroy();
  }
}

async function pictureIn(host: SimHost): Promise<string> {
  const path = join(host.dir, 'in.png');
  const picture = sharp({ create: { width: 60, height: 40, channels: 3, background: '#996633' } });
  await writeFile(path, await picture.png().toBuffer());
  return path;
}
