import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { ConfigError } from '../../shared/config-file.ts';
import { agentFileSchema, loadAgentConfig, placesOf, withServedId } from '../../agent/config.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-config-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const QWEN = 'models: { qwen: { engine: vllm-omni, model: Qwen/Qwen-Image, revision: abc } }';

describe('a good file', () => {
  test('the shipped example parses', async () => {
    const config = await loadAgentConfig({ config: 'systemd/agent.example.yaml' }, {});
    expect(config.listen).toEqual({ host: '127.0.0.1', port: 7801 });
    expect(config.gpu).toEqual({
      reserveMiB: 1024,
      sampleIntervalMs: 1000,
      silenceMs: 10_000,
      queryTimeoutMs: 3_000,
      yieldsToForeign: false,
      nvidiaSmi: 'nvidia-smi',
    });
    expect(config.warnings).toEqual([]);
    const [qwen, step1x, flux] = config.models;
    expect(qwen).toMatchObject({
      alias: 'qwen-image',
      id: 'Qwen/Qwen-Image-2512@0123456789abcdef0123456789abcdef01234567',
      profileFrom: 'shipped',
      capabilities: ['generate'],
      launch: { kind: 'owned', command: ['/opt/vllm/bin/vllm', 'serve'], args: ['--vae-use-tiling'], env: {} },
      vramMiB: 61_440,
      offloadAfterMs: 300_000,
      releaseAfterMs: 3_600_000,
      preload: true,
      pin: false,
    });
    expect(step1x).toMatchObject({ engine: 'step1x-edit', capabilities: ['edit'], preload: false });
    expect(step1x?.launch).toMatchObject({ cwd: '/opt/Step1X-Edit', env: { GPU_IDLE_TIMEOUT: '86400' } });
    expect(flux).toMatchObject({
      launch: { kind: 'attached', url: 'http://127.0.0.1:8000', start: ['docker', 'start', 'flux'] },
      releaseAfterMs: 7_200_000,
    });
  });

  test('capabilities are published with the profile, and stay when an attached server says what it serves', async () => {
    const text = 'models: { m: { engine: vllm-omni, attach: "http://127.0.0.1:1", capabilities: [edit] } }';
    const [model] = (await load(text)).models;
    if (model === undefined) throw new Error('no model');
    expect([model.capabilities, model.profile.capabilities]).toEqual([['edit'], ['edit']]);
    const served = withServedId(model, 'Qwen/Qwen-Image-2512');
    expect(served).toMatchObject({ id: 'Qwen/Qwen-Image-2512', profileFrom: 'shipped', capabilities: ['edit'] });
    expect(served.profile).toMatchObject({ model: 'Qwen/Qwen-Image-2512', capabilities: ['edit'] });
    const [plain] = (await load('models: { m: { engine: vllm-omni, attach: "http://127.0.0.1:1" } }')).models;
    if (plain === undefined) throw new Error('no model');
    expect(withServedId(plain, 'Qwen/Qwen-Image-2512').capabilities).toEqual(['generate']);
  });

  test('an empty file is a host without models, with the documented times', async () => {
    const config = await load('');
    expect(config.models).toEqual([]);
    expect(config.times).toEqual({
      grantMs: 5_000,
      stopGraceMs: 30_000,
      vramBackMs: 15_000,
      vramBackOffloadedMs: 90_000,
      startDeadlineMs: 900_000,
      stallMs: 300_000,
      jobFloorMs: 60_000,
      jobLimitMs: 86_400_000,
      healthPollMs: 1_000,
      moveAnswerMs: 40_000,
      inputSilenceMs: 60_000,
      jobGraceMs: 30_000,
      heldAwayMs: 600_000,
      turnMs: 30_000,
      pingEveryMs: 15_000,
      silenceMs: 45_000,
      undrainedMs: 30_000,
      retryFirstMs: 2_000,
    });
  });

  test('relative directories are relative to the file, logs lie below the state', async () => {
    const config = await load('state_dir: state');
    expect([config.stateDir, config.logDir]).toEqual([join(dir, 'state'), join(dir, 'state', 'logs')]);
  });

  test('defaults < file < environment < flags', async () => {
    const path = await file('listen: 127.0.0.1:1\nlog_level: warn\ngpu: { reserve: 2GiB }');
    const env = { GANTRY_LISTEN: '127.0.0.1:2', GANTRY_LOG_LEVEL: 'error', GANTRY_NVIDIA_SMI: '/opt/smi' };
    const config = await loadAgentConfig({ config: path, listen: '127.0.0.1:3' }, env);
    expect([config.listen.port, config.logLevel]).toEqual([3, 'error']);
    expect(config.gpu).toMatchObject({ reserveMiB: 2048, nvidiaSmi: '/opt/smi' });
  });

  test('a profile override extends the shipped profile', async () => {
    const { models } = await load(QWEN.replace('revision: abc', 'revision: abc, profile: { steps: 12, stepMs: 300 }'));
    expect(models[0]?.profileFrom).toBe('configured');
    expect(models[0]?.profile).toMatchObject({ steps: 12, stepMs: 300, supportsNegativePrompt: true });
  });

  test('an unpinned repository is a warning, a path is not', async () => {
    expect((await load(QWEN.replace(', revision: abc', ''))).warnings).toEqual([
      expect.stringContaining('models.qwen: no revision.'),
    ]);
    expect((await load(QWEN.replace('Qwen/Qwen-Image, revision: abc', '/srv/qwen'))).warnings).toEqual([]);
  });

  test('the state directory is known without the file when a flag names it', async () => {
    expect(await placesOf({ config: '/nowhere', stateDir: dir }, {})).toEqual({
      stateDir: dir,
      logDir: join(dir, 'logs'),
    });
  });
});

describe('a bad file', () => {
  test.each([
    ['unknown key at the top', 'stat_dir: x', 'stat_dir: unknown key. Did you mean state_dir?'],
    [
      'unknown key of a model',
      QWEN.replace('revision', 'revison'),
      'models.qwen.revison: unknown key. Did you mean revision?',
    ],
    ['unknown key without a near one', 'times: { zzzzzzzz: 1s }', 'times.zzzzzzzz: unknown key. Valid keys: grant, '],
    [
      'start without attach',
      QWEN.replace('revision: abc', 'revision: abc, start: [x]'),
      'models.qwen.start: only with attach',
    ],
    [
      'release_after of an attached server that nobody can stop',
      'models: { q: { engine: vllm-omni, attach: "http://h:1", release_after: 1h } }',
      'models.q.release_after: with attach it needs `stop`',
    ],
    ['duration without a unit', 'times: { grant: 5 }', 'times.grant: expected a duration like 30s, 5m or 1h'],
    ['size with a decimal unit', 'gpu: { reserve: 1GB }', 'gpu.reserve: expected a size like 512MiB or 8GiB'],
    ['two jobs on one GPU', 'gpu: { jobs_per_gpu: 2 }', 'gpu.jobs_per_gpu: only 1 is possible'],
    ['no port', 'listen: 127.0.0.1', 'listen: 127.0.0.1 is not an address and port'],
    ['port too high', 'listen: 127.0.0.1:70000', 'listen: 127.0.0.1:70000 is not an address and port'],
    ['all addresses', 'listen: 0.0.0.0:7801\ntls: off', 'listen: 0.0.0.0 is not a private address of this machine'],
    [
      'a public address',
      'listen: 203.0.113.5:7801\ntls: off',
      '203.0.113.5 is not a private address of this machine, and with `tls: off` traffic is not encrypted',
    ],
    ['a public address of IPv6', 'listen: "[2001:db8::5]:7801"\ntls: off', '2001:db8::5 is not a private address'],
    ['a word of its own', 'listen: 10.0.0.5:7801\ntls: never', 'tls: '],
    ['model without a repository', 'models: { q: { engine: vllm-omni } }', 'models.q.model: missing'],
    [
      'attach with a command',
      'models: { q: { engine: vllm-omni, attach: "http://h:1", args: [x] } }',
      'models.q.args: not with attach',
    ],
    ['unknown engine', 'models: { q: { engine: comfy, model: x } }', 'models.q.engine: '],
    ['name with a slash', 'models: { a/b: { engine: vllm-omni, model: x } }', 'models.a/b: '],
    [
      'one id twice',
      'models: { a: { engine: vllm-omni, model: x/y }, b: { engine: vllm-omni, model: x/y } }',
      'models.b.model: x/y is already models.a',
    ],
    ['not a mapping', '[1, 2]', 'expected a mapping'],
    ['broken YAML', 'listen: [', 'line 1'],
    ['one key twice', 'listen: 127.0.0.1:1\nlisten: 127.0.0.1:2', 'Map keys must be unique at line 2'],
  ])('%s', async (_, text, problem) => {
    const problems = await problemsOf(text);
    expect(problems.join('\n')).toContain(problem);
    expect(problems[0]).toMatch(new RegExp(`^${dir}/agent\\.yaml: `));
  });

  test('every problem is reported at once', async () => {
    expect(await problemsOf('stat_dir: x\nlog_level: loud\ntimes: { grant: 5, turnn: 1s }')).toHaveLength(4);
  });

  test('a private address is fine with tls: off, and loopback always', async () => {
    for (const address of ['10.1.2.3:1', '172.31.0.1:1', '192.168.0.9:1', '100.64.1.2:1', '"[fd00::1]:1"']) {
      expect(await load(`listen: ${address}\ntls: off`)).toMatchObject({ listen: { port: 1 }, tls: false });
    }
    for (const address of ['localhost:1', '127.9.9.9:1', '"[::1]:1"']) {
      expect(await load(`listen: ${address}`)).toMatchObject({ listen: { port: 1 }, tls: false });
    }
    expect(await load('listen: 127.0.0.1:1\ntls: on')).toMatchObject({ tls: true });
  });

  test('S1: everywhere else the port speaks TLS without a word about it', async () => {
    for (const address of [
      '10.1.2.3:1',
      '100.64.1.2:1',
      '203.0.113.5:1',
      '0.0.0.0:1',
      '"[::]:1"',
      '"[2001:db8::1]:1"',
    ]) {
      expect(await load(`listen: ${address}`), address).toMatchObject({ tls: true });
    }
  });

  test('a missing file says how to name one', async () => {
    const missing = loadAgentConfig({ config: join(dir, 'absent.yaml') }, {});
    await expect(missing).rejects.toThrow(
      `${join(dir, 'absent.yaml')}: cannot be read (ENOENT). Name the file with --config FILE.`,
    );
  });
});

test('the JSON Schema names every key, with what may be left out', () => {
  const schema = JSON.stringify(agentFileSchema());
  for (const key of ['listen', 'offload_after', 'jobs_per_gpu', 'stop_grace', 'attach'])
    expect(schema).toContain(`"${key}"`);
  expect(agentFileSchema()).not.toHaveProperty('required');
});

test('every key says what it is for', () => {
  expect(keysWithoutMeaning(agentFileSchema(), '')).toEqual([]);
});

/** Keys of a JSON Schema that have neither a description nor keys of their own. */
function keysWithoutMeaning(schema: unknown, path: string): string[] {
  const Node = z.object({
    description: z.string().optional(),
    properties: z.record(z.string(), z.unknown()).optional(),
    additionalProperties: z.unknown(),
  });
  const { description, properties, additionalProperties } = Node.partial().parse(schema);
  if (properties !== undefined) {
    return Object.entries(properties).flatMap(([key, below]) => keysWithoutMeaning(below, `${path}.${key}`));
  }
  if (description !== undefined) return [];
  return typeof additionalProperties === 'object' ? keysWithoutMeaning(additionalProperties, `${path}.*`) : [path];
}

async function file(text: string): Promise<string> {
  const path = join(dir, 'agent.yaml');
  await writeFile(path, text);
  return path;
}

async function load(text: string) {
  return await loadAgentConfig({ config: await file(text) }, {});
}

async function problemsOf(text: string): Promise<readonly string[]> {
  try {
    await load(text);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  throw new Error('the file was accepted');
}
