import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { Deadline } from '../../shared/abort.ts';
import { SimulatedHost } from '../lib/simulated-host.ts';
import type { BenchPart, BenchRow, BenchStage } from './row.ts';
import { figure } from './row.ts';

const SPAWNS = 15;
const HOSTS = ['a', 'b', 'c'];
const SPAWN_MS = 10_000;

type Run = { args: readonly string[]; input?: string; until: (stdout: string) => boolean };
export type Spread = { p50: number; min: number };

/** From a spawn to the answer: of the bridge as a client starts it, and of `gantry status` with its hosts up. */
export const START_UP: BenchPart = {
  ids: ['M5', 'M6'],
  title: `${SPAWNS} starts of the bridge and of gantry status`,
  run: measure,
};

async function measure({ directory, signal }: BenchStage): Promise<BenchRow[]> {
  const started = HOSTS.map((name) => SimulatedHost.start({ ...host(name), directory: join(directory, name) }));
  const hosts = await Promise.all(started);
  try {
    const config = join(directory, 'bridge.yaml');
    await writeFile(config, stringify({ hosts: hosts.map(({ name, url, token }) => ({ name, url, token })) }), {
      mode: 0o600,
    });
    const program = resolve('dist/gantry.cjs');
    const runs = {
      bridge: { args: [program, 'bridge', '--config', config], input: QUESTIONS, until: hasToolList },
      status: { args: [program, 'status', '--config', config], until: () => false },
      node: { args: ['-e', '0'], until: () => false },
    };
    const times = { bridge: [] as number[], status: [] as number[], node: [] as number[] };
    // In turns, so that a slow second of the machine falls on all three; the first turn fills the caches and does not count.
    for (let turn = 0; turn <= SPAWNS; turn += 1) {
      for (const name of ['node', 'bridge', 'status'] as const) {
        signal.throwIfAborted();
        const tookMs = await timed(runs[name], directory);
        if (turn > 0) times[name].push(tookMs);
      }
    }
    const node = spread(times.node);
    return [
      row('M5', 'gantry bridge: spawn to tools/list', spread(times.bridge), { node, most: 100 }),
      row('M6', `gantry status, ${HOSTS.length} hosts up`, spread(times.status), { node, most: 150 }),
    ];
  } finally {
    await Promise.all(hosts.map((one) => one[Symbol.asyncDispose]()));
  }
}

/** What a client says at its start, without waiting in between. */
const QUESTIONS = [
  {
    id: 1,
    method: 'initialize',
    params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'bench', version: '1' } },
  },
  { method: 'notifications/initialized' },
  { id: 2, method: 'tools/list', params: {} },
]
  .map((message) => `${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)
  .join('');

function hasToolList(stdout: string): boolean {
  return stdout.split('\n').length > 2 && stdout.includes('"generate_image"');
}

/** From the spawn to what `until` waits for, or to the end of the process. */
async function timed({ args, input, until }: Run, home: string): Promise<number> {
  const startMs = performance.now();
  using deadline = new Deadline({ ms: SPAWN_MS });
  // Node reads NODE_EXTRA_CA_CERTS at every start, which takes longer than a bare start; nothing here needs it.
  const env = { PATH: process.env['PATH'], HOME: home, XDG_STATE_HOME: join(home, 'state') };
  const child = spawn(process.execPath, args, { env, cwd: home, stdio: ['pipe', 'pipe', 'ignore'] });
  const closed = once(child, 'close', { signal: deadline.signal });
  child.stdin.on('error', () => undefined); // it has ended without reading
  if (input === undefined) child.stdin.end();
  else child.stdin.write(input);
  let stdout = '';
  const answered = new Promise<number>((resolve) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      if (until(stdout)) resolve(performance.now());
    });
  });
  const ended = closed.then(() => performance.now());
  const endMs = await Promise.race([answered, ended]);
  child.stdin.end();
  const [code] = (await closed) as [number | null];
  if (code !== 0) throw new Error(`${args.join(' ')} ended with ${String(code)}:\n${stdout.slice(-500)}`);
  return endMs - startMs;
}

function host(name: string) {
  return {
    name,
    gpus: [{ name: 'Simulated GPU', totalMiB: 24_564 }],
    models: {
      klein: { engine: 'vllm-omni' as const, model: 'black-forest-labs/FLUX.2-klein-4B', vram: '8GiB' },
    },
  };
}

/** The middle one, the mean of both middle ones where their number is even, and the smallest. */
export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const [low = Number.NaN, high = low] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  return { p50: (low + high) / 2, min: sorted[0] ?? Number.NaN };
}

function row(id: string, name: string, { p50, min }: Spread, { node, most }: { node: Spread; most: number }): BenchRow {
  return {
    id,
    name,
    value: p50,
    unit: 'ms',
    ratio: p50 / node.p50,
    reference: `node -e 0: ${figure(node.p50)} ms, best ${figure(node.min)}`,
    gate: `<= ${most} ms`,
    pass: p50 <= most,
    note: `p50 of ${SPAWNS}, the best took ${figure(min)} ms; NODE_EXTRA_CA_CERTS is not set, with it Node itself starts later.`,
  };
}
