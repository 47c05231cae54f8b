import { execa } from 'execa';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { describe, expect, vi } from 'vitest';
import type { LoggedEvent, SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { SEVERAL_AT_ONCE } from '../helpers/at-once.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf } from '../helpers/host-status.ts';
import { SMALL, loaded, startBatch, startFleet, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory } from './history.ts';
import { agentConfig, bridgeConfig, FACTOR, scaledMs } from './scale.ts';

// They mostly wait, and no bound of theirs is tight.
vi.setConfig(SEVERAL_AT_ONCE);

const SECOND = 'Tongyi-MAI/Z-Image-Turbo';
const THIRD = 'black-forest-labs/FLUX.1-schnell';
/** Apart from each other and from what a start takes on a machine at work; the shipped ones would only take longer. */
const STALL_MS = 10_000;
const START_DEADLINE_MS = 20_000;
/** A starting server is given so long for each answer, whatever the factor. */
const PROBE_MS = 5_000;

describe('a model server does not become ready', () => {
  fault('F06', 'never ready, or "startup complete" but no answer', async (row) => {
    const { times, gpu } = agentConfig();
    await using fleet = await TestFleet.start([
      {
        name: 'a',
        gpuMiB: [24_564, 24_564, 24_564],
        models: {
          klein: loaded({}, { pin: true }),
          silent: { ...vllm(SECOND, { 'hang-after-startup': true, 'weights-mib': 15_000 }), preload: true },
          // It goes on all the time, as its VRAM shows, and is never through.
          slow: { ...vllm(THIRD, { 'load-ms': 2 * START_DEADLINE_MS, 'weights-mib': 15_000 }), preload: true },
        },
        config: { gpu, times: { ...times, stall: `${STALL_MS}ms`, start_deadline: `${START_DEADLINE_MS}ms` } },
      },
    ]);
    const host = fleet.host('a');
    await untilReady(fleet, 'klein');
    await eventually(
      'both others start',
      async () => ['silent', 'slow'].every((alias) => startOf(host, alias)),
      30_000,
    );
    row.injected();
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 3);
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('others unaffected');
    const failureOf = (alias: string) => host.events('model-failed').find((event) => event['slotId'] === alias);
    // A limit is seen between two questions. Failed means ended: the grace of the stop comes on top.
    const boundMs = (limitMs: number): number => (limitMs + PROBE_MS) / FACTOR + 30_000;
    const silent = await row.sees('no answer: fails by the stall limit', boundMs(STALL_MS), async () =>
      failureOf('silent'),
    );
    expect(String(silent['error'])).toMatch(/no sign of life/);
    expect(String(silent['error'])).toContain('Application startup complete.');
    const slow = await row.sees('never ready: fails by the start deadline', boundMs(START_DEADLINE_MS), async () =>
      failureOf('slow'),
    );
    expect(String(slow['error'])).toMatch(/was not ready after/);
    const lines = String(slow['error']).split('\n').slice(1);
    expect(lines.length).toBeGreaterThan(1);
    expect(lines.length).toBeLessThanOrEqual(20);
    row.holds('with its last log lines, 20 at most');
  });

  fault('F07', 'crash loop', async (row) => {
    await using fleet = await startFleet({ a: { 'exit-after': 0, 'exit-code': 1 } });
    const host = fleet.host('a');
    row.injected();
    // Three starts and two pauses; how long a start takes is the machine's.
    const given = await row.sees('given up after 3 starts', 60_000, async () => {
      return host.events('model-failed').find((event) => event['retry'] === 'never');
    });
    const failures = host.events('model-failed');
    expect(failures).toHaveLength(3);
    expect(given).toEqual(failures[2]);
    const starts = host.events('model-loading');
    expect(starts).toHaveLength(3);
    for (const [index, leastMs] of [1_500, 3_000].entries()) {
      const pausedMs = (starts[index + 1]?.time ?? 0) - (failures[index]?.time ?? 0);
      expect(pausedMs, `the pause after failure ${index + 1}, ms`).toBeGreaterThanOrEqual(scaledMs(leastMs) - 1);
    }
    const model = await modelOf(host, 'klein');
    expect(model).toMatchObject({ state: 'failed', slots: [{ phase: 'cannot' }] });
    expect(model.slots[0]?.reason).toMatch(/exited with code 1 before it was ready/);
    row.holds('the slot says why');
    const bridge = await fleet.bridge(bridgeConfig());
    const asked = await bridge.call('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 3 });
    expect(asked.json['status'] ?? 'refused', asked.text).not.toBe('success');
    expect(asked.text).toMatch(/exited with code 1 before it was ready/);
    expect(host.events('model-loading')).toHaveLength(3);
    row.holds('one clear reason to the caller, and no further start');
  });

  fault('F08', 'orphan answers 200 on our port', async (row) => {
    await using fleet = await TestFleet.start([{ name: 'a', models: {}, config: agentConfig() }]);
    const host = fleet.host('a');
    const script = await portThief(fleet.directory);
    await host.configure({
      klein: loaded({ fork: false }, { command: [script, resolve('dist/sim/vllm-omni'), 'serve'] }),
    });
    row.injected();
    const argv = await eventually('the first start', async () => await wordsIn(join(fleet.directory, 'first-start')));
    // The thief: what an earlier agent may have left running, alive and answering for the same model.
    const orphan = execa(resolve('dist/sim/vllm-omni'), argv, {
      env: { GANTRY_SIM_LEDGER: host.ledger },
      ...{ stdio: 'ignore', reject: false, extendEnv: true },
    });
    try {
      const port = argv[argv.indexOf('--port') + 1];
      await eventually('the orphan answers', async () => (await healthOf(port)) === 200);
      await writeFile(join(fleet.directory, 'go'), '');
      const ready = await row.sees('ready, by a server of our own', 30_000, async () => host.events('model-ready')[0]);
      expect(host.events('model-ready')).toEqual([ready]);
      expect(host.log.join('\n'), 'the orphan is named').toMatch(new RegExp(`\\b${orphan.pid}\\b`));
      expect((await readFile(join(fleet.directory, 'starts'), 'utf8')).trim().split('\n')).toHaveLength(2);
      row.holds('orphan named, next port, one extra start');
      const bridge = await fleet.bridge(bridgeConfig());
      const id = await startBatch(bridge, 1);
      expect(await untilEnded(bridge, id)).toBe('success');
      await expectHistory(fleet, id);
      expect(await healthOf(port), 'the orphan is not ours to end').toBe(200);
    } finally {
      orphan.kill('SIGKILL');
      await orphan;
    }
  });
});

function startOf(host: SimulatedHost, alias: string): LoggedEvent | undefined {
  return host.events('model-loading').find((event) => event['slotId'] === alias);
}

/** Starts the engine as it was asked to, but the first time only after the test has put somebody else on its port. */
async function portThief(directory: string): Promise<string> {
  const path = join(directory, 'engine.sh');
  const text = [
    '#!/bin/sh',
    `cd ${directory}`,
    'echo start >> starts',
    'if [ ! -e go ]; then',
    '  (shift; printf "%s\\n" "$@") > first-start.tmp && mv first-start.tmp first-start',
    '  while [ ! -e go ]; do sleep 0.05; done',
    'fi',
    'exec "$@"',
  ];
  await writeFile(path, `${text.join('\n')}\n`);
  await chmod(path, 0o755);
  return path;
}

async function wordsIn(path: string): Promise<string[] | undefined> {
  const text = await readFile(path, 'utf8').catch(() => undefined); // not yet
  return text?.trim().split('\n');
}

async function healthOf(port: string | undefined): Promise<number | undefined> {
  const { stdout } = await execa(
    'curl',
    ['-s', '-m', '2', '-o', '/dev/null', '-w', '%{http_code}', `http://127.0.0.1:${port}/health`],
    { reject: false },
  );
  return Number(stdout) || undefined;
}
