import { execa } from 'execa';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { WsPeer } from '../agent/rpc/ws-peer.ts';

const PATIENCE = 120_000;
const MAIN = resolve('dist/gantry-agent.mjs');

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-agent-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

describe('gantry-agent run', { timeout: PATIENCE }, () => {
  test('without models, without nvidia-smi: listens, serves a bridge, ends at SIGTERM and leaves nothing running', async () => {
    const config = await writeConfig();
    await using agent = await RunningAgent.start(config);
    const { stdout: token } = await command('tokens', 'add', 'laptop', '--config', config);
    const peer = await WsPeer.hello(agent, token);
    await peer.until(() => peer.notifications('snapshot')[0]);
    expect(await agent.stop('SIGTERM')).toBe(0);
    expect((await peer.closed()).code).toBe(1001);
    expect(await readdir(join(dir, 'state'))).not.toContain('agent.sock');
    expect(agent.events().filter((event) => event === 'listening')).toHaveLength(1);
    expect(agent.events().at(-1)).toBe('stopped');
    expect(agent.text()).not.toContain(token);
  });

  test('answers while nvidia-smi hangs', async () => {
    const smi = join(dir, 'nvidia-smi');
    await writeFile(smi, '#!/bin/sh\nexec sleep 1000\n', { mode: 0o755 });
    await using agent = await RunningAgent.start(
      await writeConfig(
        `gpu: { nvidia_smi: ${smi}, silence: 1s }\nmodels: { m: { engine: vllm-omni, model: /srv/m } }`,
      ),
    );
    const { stdout: token } = await command('tokens', 'add', 'laptop', '--state-dir', join(dir, 'state'));
    await using peer = await WsPeer.hello(agent, token);
    expect(await peer.until(() => peer.notifications('snapshot')[0])).toMatchObject({
      snapshot: { models: [{ alias: 'm', state: 'released' }] },
    });
    expect(await agent.stop('SIGINT')).toBe(0);
  });

  test('keeps its id over a restart, also after SIGKILL', async () => {
    const config = await writeConfig();
    const { stdout: token } = await command('tokens', 'add', 'laptop', '--config', config);
    const ids = [];
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      await using agent = await RunningAgent.start(config);
      await using peer = await WsPeer.hello(agent, token);
      const { result } = z
        .object({ result: z.object({ agentId: z.string(), epoch: z.string() }) })
        .parse(peer.frames[0]);
      ids.push(result);
      await agent.stop(signal);
    }
    expect(ids[0]?.agentId).toBe(ids[1]?.agentId);
    expect(ids[0]?.epoch).not.toBe(ids[1]?.epoch);
  });

  test.skipIf(!existsSync('/usr/bin/script'))('ends with its terminal: there SIGHUP is no reload', async () => {
    const line = `node ${MAIN} run --config ${await writeConfig()}`;
    const terminal = execa('script', ['-qfec', line, '/dev/null'], { stdin: 'pipe', reject: false });
    let seen = '';
    terminal.stdout.on('data', (chunk: Buffer) => (seen += chunk.toString()));
    await expect.poll(() => seen, { timeout: 60_000 }).toContain('"listening"');
    process.kill(Number(/"pid":(\d+)/.exec(seen)?.[1]), 'SIGHUP');
    expect((await terminal).exitCode).toBe(0);
    expect(seen).toContain('"stopped"');
    expect(seen).not.toContain('reload');
  });

  test('a second one on the same state directory exits 75 and names the first', async () => {
    const config = await writeConfig();
    await using agent = await RunningAgent.start(config);
    const second = await command('run', '--config', config);
    expect(second).toMatchObject({ exitCode: 75, stdout: '' });
    expect(second.stderr).toContain(`in use by another gantry-agent (pid ${agent.pid})`);
  });

  test('a port that is taken is exit 69', async () => {
    const other = createServer();
    await once(other.listen(0, '127.0.0.1'), 'listening');
    const address = other.address();
    const port = typeof address === 'object' ? address?.port : 0;
    const taken = await command('run', '--config', await writeConfig(), '--listen', `127.0.0.1:${port}`);
    other.close();
    expect(taken.exitCode).toBe(69);
    expect(taken.stderr).toContain('choose another one with `listen`');
    expect(taken.stderr).not.toMatch(/^\s+at /m);
  });

  test('a configuration that is wrong is exit 78, with every problem', async () => {
    const wrong = await command('run', '--config', await writeConfig('modles: {}\ntimes: { grant: 5 }'));
    expect(wrong).toMatchObject({ exitCode: 78, stdout: '' });
    expect(wrong.stderr.split('\n').sort()).toEqual([
      expect.stringContaining('agent.yaml: modles: unknown key. Did you mean models?') as string,
      expect.stringContaining('agent.yaml: times.grant: expected a duration') as string,
    ]);
    const bare = await command('run', '--config', await writeConfig('tls: off'), '--listen', '0.0.0.0:0');
    expect(bare).toMatchObject({ exitCode: 78, stdout: '' });
    expect(bare.stderr).toContain('tls');
  });
});

describe('gantry-agent', { timeout: PATIENCE }, () => {
  test('config check counts the models and warns; config schema is JSON', async () => {
    const good = await command(
      'config',
      'check',
      '--config',
      await writeConfig('models: { m: { engine: vllm-omni, model: a/b } }'),
    );
    expect(good.exitCode).toBe(0);
    expect(good.stdout).toMatch(/warning: models\.m: no revision\.[^]*agent\.yaml: ok, 1 model\b/);
    const schema = await command('config', 'schema');
    expect(JSON.parse(schema.stdout)).toMatchObject({ type: 'object', additionalProperties: false });
  });

  test('tokens are added, listed without their text, and revoked', async () => {
    const state = ['--state-dir', join(dir, 'state')];
    const { stdout: token } = await command('tokens', 'add', 'laptop', '--role', 'viewer', ...state);
    expect(token).toMatch(/^gantry_[\w-]{43}$/);
    const list = await command('tokens', 'list', '--json', ...state);
    expect(JSON.parse(list.stdout)).toEqual([
      { name: 'laptop', role: 'viewer', createdAt: expect.any(String) as string, lastUsedAt: null },
    ]);
    expect(await command('tokens', 'revoke', 'laptop', ...state)).toMatchObject({ exitCode: 0 });
    expect(await command('tokens', 'revoke', 'laptop', ...state)).toMatchObject({ exitCode: 1 });
    expect((await command('tokens', 'list', ...state)).stdout).toContain('There are no tokens.');
    expect(await readFile(join(dir, 'state', 'tokens.json'), 'utf8')).not.toContain(token);
  });

  test('a misspelled command is exit 2 and says what was meant', async () => {
    const misspelled = await command('tokns', 'list');
    expect(misspelled.exitCode).toBe(2);
    expect(misspelled.stderr).toContain('Did you mean tokens?');
  });
});

/** An agent process; disposed means killed. */
class RunningAgent implements AsyncDisposable {
  readonly port: number;
  readonly #process: ReturnType<typeof spawn>;
  readonly #lines: string[];

  private constructor(running: ReturnType<typeof spawn>, { port, lines }: { port: number; lines: string[] }) {
    this.#process = running;
    this.#lines = lines;
    this.port = port;
  }

  static async start(config: string): Promise<RunningAgent> {
    const running = spawn(config);
    const lines: string[] = [];
    const port = await new Promise<number>((listening, failed) => {
      const reader = createInterface({ input: running.stdout });
      reader.on('line', (line) => {
        lines.push(line);
        const event = Line.parse(JSON.parse(line));
        if (event.event === 'listening' && event.port !== undefined) listening(event.port);
      });
      reader.once('close', () => failed(new Error(`the agent ended: ${lines.join('\n')}`)));
    });
    return new RunningAgent(running, { port, lines });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  events(): (string | undefined)[] {
    return this.#lines.map((line) => Line.parse(JSON.parse(line)).event);
  }

  text(): string {
    return this.#lines.join('\n');
  }

  async stop(signal: 'SIGTERM' | 'SIGINT' | 'SIGKILL'): Promise<number | undefined> {
    this.#process.kill(signal);
    return (await this.#process).exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGKILL');
  }
}

const Line = z.object({ event: z.string().optional(), port: z.number().optional() });

function spawn(config: string) {
  return execa('node', [MAIN, 'run', '--config', config], {
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'inherit',
    buffer: false,
    reject: false,
  });
}

async function command(...args: string[]) {
  const { exitCode, stdout, stderr } = await execa('node', [MAIN, ...args], { stdin: 'ignore', reject: false });
  return { exitCode, stdout, stderr };
}

async function writeConfig(more = ''): Promise<string> {
  const path = join(dir, 'agent.yaml');
  const gpu = more.includes('gpu:') ? '' : `gpu: { nvidia_smi: ${join(dir, 'absent')} }\n`;
  await writeFile(path, `listen: 127.0.0.1:0\nstate_dir: state\n${gpu}${more}\n`);
  return path;
}
