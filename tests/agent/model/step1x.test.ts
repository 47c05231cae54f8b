import { execa } from 'execa';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { callEngine } from '../../../agent/engine/engine.ts';
import { multipart } from '../../../agent/engine/multipart.ts';
import { step1xEdit } from '../../../agent/engine/step1x-edit.ts';
import { freePort } from '../../../agent/server/free-port.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { Collected, edit, ModelHost, never, QUIET, step1x, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

const errorOf = (promise: Promise<unknown>): Promise<string> => promise.then(String, String);

let input: Buffer;
beforeAll(async () => {
  input = await readFile('tests/agent/model/input.png');
});

async function run(
  host: ModelHost,
  more: Parameters<typeof edit>[0] = {},
): Promise<{ image: Buffer; notes: string[] }> {
  using lease = await host.admit('step1x');
  const sink = new Collected();
  const { notes } = await lease.run(edit({ sizeLevel: 512, ...more }), [input], { ...QUIET, sink });
  return { image: sink.image, notes };
}

describe('Step1X-Edit that cannot work', () => {
  test.each([
    ['--broken-head', /version as published fails in this way for every edit. Run a patched fork/],
    ['--missing-weights', /did not find its weights. Set DIT_PATH and AE_PATH/],
  ])('with %s says why when it is loaded, and is not started again', async (flag, says) => {
    await using host = await ModelHost.start([step1x([flag])]);
    expect(await errorOf(host.move('step1x', 'load'))).toMatch(says);
    expect(host.state('step1x')).toBe('failed');
    expect(host.residency.slotFacts('step1x').retryInMs).toBeUndefined();
    expect(host.usedMiB()).toBe(0);
  });

  test('is told from another server that answers there', async () => {
    await using their = await attach('vllm-omni', ['serve', 'x/y', '--omni', '--load-ms', '20'], { isUp: false });
    await vi.waitFor(() => callEngine(`${their.url}/health`, { signal: never }), { timeout: 60_000 });
    expect(await errorOf(their.host.move('step1x', 'load'))).toContain('is no Step1X-Edit');
    expect(their.host.state('step1x')).toBe('failed');
  });
});

describe('Step1X-Edit in a version', () => {
  test('whose offload does nothing is not believed: it stays ready, and is not asked again', async () => {
    await using host = await ModelHost.start([step1x(['--offload', 'noop'])]);
    await host.move('step1x', 'load');
    const away = await host.move('step1x', 'offload');
    expect(away.message).toMatch(/only 0 MiB of \d+ MiB came free/);
    expect(host.state('step1x')).toBe('ready');
    expect(host.residency.slotFacts('step1x').loadedMiB).toBeGreaterThan(7_000);
    expect(host.residency.vramView(new Set()).residents[0]?.canOffload).toBe(false);
    expect((await run(host)).image.length).toBeGreaterThan(0);
  });

  test('that cannot return a prompt beyond Latin-1 is known from its load, and such a prompt costs no edit', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-step1x-'));
    const log = join(directory, 'requests.jsonl');
    const posts = async () =>
      (await readFile(log, 'utf8')).split('\n').filter((line) => line.includes('"POST"')).length;
    await using host = await ModelHost.start([step1x(['--request-log', log])]);
    await host.move('step1x', 'load');
    const before = await posts();
    expect(await errorOf(run(host, { prompt: 'make it blue \u{1F499}' }))).toMatch(/was not sent. .* plain letters/);
    expect(await posts()).toBe(before);
    expect((await run(host, { prompt: 'en blå räv' })).image.length).toBeGreaterThan(0);
    await vi.waitFor(async () => expect(await posts()).toBeGreaterThan(before), { timeout: 60_000 });
    await rm(directory, { recursive: true });
  });

  test('that can is not held to it', async () => {
    await using host = await ModelHost.start([step1x(['--no-prompt-header'])]);
    const made = await run(host, { prompt: '把它变成\n蓝色' });
    expect(made.image.length).toBeGreaterThan(0);
    expect(made.notes.join()).toContain('Line breaks');
  });

  test('that offloads by its own timer in the middle of an edit is told what helps', async () => {
    const model = step1x(['--idle-timeout-ms', '3000', '--generate-ms', '0', '--step-ms', '60']);
    await using host = await ModelHost.start([model]);
    await host.move('step1x', 'load');
    expect(await errorOf(run(host, { steps: 80 }))).toMatch(/own idle timer .* GPU_IDLE_TIMEOUT/);
    expect((await run(host, { steps: 5 })).image.length).toBeGreaterThan(0);
  });
});

describe('Step1X-Edit of somebody else', () => {
  test('is not taken for dead while it edits for them, and answers nothing; refusing is death', async () => {
    const health = { signal: never, deadlineMs: 300 };
    let url: string;
    {
      await using their = await attach('step1x-edit', ['--generate-ms', '1500']);
      url = their.url;
      const form = multipart({ prompt: 'brighter' }, [{ name: 'file', fileName: 'a.png', bytes: input }]);
      const long = callEngine(`${url}/api/edit`, { method: 'POST', ...form, signal: never, deadlineMs: 30_000 });
      await expect(callEngine(`${url}/health`, health)).rejects.toThrow(/no answer/);
      expect(await step1xEdit().isHealthy({ url, ...health })).toBe(true);
      expect((await long).status).toBe(200);
    }
    expect(await step1xEdit().isHealthy({ url, ...health })).toBe(false);
  });

  test('is asked at the right paths after it was restarted as the other server', async () => {
    await using their = await attach('step1x-edit', ['--server', 'api'], { healthPollMs: 2_000 });
    await their.restart(['--server', 'unified']);
    const away = await their.host.move('step1x', 'offload');
    expect(away).toMatchObject({ done: 'offload' });
  });
});

/** A server of this test, and a host that is attached to it. */
async function attach(
  program: 'vllm-omni' | 'step1x-edit',
  args: readonly string[],
  { isUp = true, healthPollMs = 50 }: { isUp?: boolean; healthPollMs?: number } = {},
) {
  const port = await freePort('127.0.0.1');
  const url = `http://127.0.0.1:${port}`;
  const launch: ConfiguredModel['launch'] = { kind: 'attached', url };
  const host = await ModelHost.start([step1x([], { launch })], { times: { healthPollMs } });
  const start = (more: readonly string[]) =>
    execa(resolve(`dist/sim/${program}`), [...more, ...(program === 'vllm-omni' ? ['--port', String(port)] : [])], {
      env: {
        GANTRY_SIM_LEDGER: join(host.directory, 'ledger'),
        HOST: '127.0.0.1',
        PORT: String(port),
        API_PORT: String(port),
      },
      ...{ reject: false, stdio: 'ignore' },
    });
  const quick = program === 'vllm-omni' ? [] : ['--load-ms', '50', '--generate-ms', '50', '--weights-mib', '8000'];
  let server = start([...quick, ...args]);
  const stop = async (): Promise<void> => {
    server.kill('SIGKILL');
    await server;
  };
  if (isUp) await until(() => host.residency.slotFacts('step1x').isReady);
  return {
    ...{ host, url },
    restart: async (more: readonly string[]): Promise<void> => {
      await stop();
      server = start([...quick, ...more]);
      await vi.waitFor(() => callEngine(`${url}/health`, { signal: never }), { timeout: 60_000 });
    },
    [Symbol.asyncDispose]: async (): Promise<void> => {
      await stop();
      await host[Symbol.asyncDispose]();
    },
  };
}
