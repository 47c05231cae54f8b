import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import sharp from 'sharp';
import { expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { processesNaming } from '../../scripts/lib/processes-naming.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { pause } from '../../shared/abort.ts';
import { readTextChunks } from '../../shared/png-text.ts';
import { eventually, isAlive, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const IMAGES = 500;
/** Seconds instead of the 45 s after which a silent host's jobs go elsewhere. */
const TIMES = { ping_every: '1s', silence: '5s', offer_every: '250ms', reconnect_first: '50ms', reconnect_max: '2s' };
const PATIENCE_MS = 150_000;

type Result = Record<'index' | 'attempts' | 'generation_time_seconds', number> & Record<string, unknown>;

test('500 prompts over 4 hosts, the bridge killed three times and a host for good: each image once, and whole', async () => {
  await using fleet = await TestFleet.start(
    ['a', 'b', 'c', 'd'].map((name) => ({
      name,
      models: { klein: { ...vllm(MODEL, { 'step-ms': 2, fork: true }), preload: true } },
    })),
  );
  for (const host of fleet.hosts) {
    await eventually(`${host.name} is ready`, async () => (await modelOf(host, 'klein')).state === 'ready', 60_000);
  }
  const prompts = Array.from({ length: IMAGES }, (_, index) => `picture number ${index}`);
  const promptsFile = join(fleet.directory, 'prompts.txt');
  await writeFile(promptsFile, `\ufeff${prompts.join('\r\n')}\r\n`);

  let bridge = await fleet.bridge({ times: TIMES }, 'laptop');
  const started = await bridge.ask('batch_generate', {
    prompts_file: promptsFile,
    model: MODEL,
    width: 64,
    height: 64,
    num_inference_steps: 2,
    wait_seconds: 0,
  });
  const id = String(started['batch_id']);

  const [moments, lateMs] = kills();
  for (const [kill, moment] of moments.entries()) {
    await eventually(`${moment} images`, async () => (await completed(bridge, id)) >= moment, PATIENCE_MS);
    await pause(lateMs[kill] ?? 0, new AbortController().signal); // anywhere in what the bridge does
    await killed(bridge);
    if (kill === 1) await killHost(fleet.host('d'));
    bridge = await fleet.bridge({ times: TIMES }, 'laptop');
  }
  const end = await eventually(
    'the batch ends',
    async () => {
      const answer = await bridge.ask('get_job', { id, wait_seconds: 5 });
      return answer['state'] === 'running' ? undefined : answer;
    },
    PATIENCE_MS,
  );

  expect(end).toMatchObject({ state: 'success', progress: { completed: IMAGES, failed: 0 } });
  expect(end['results']).toHaveLength(20);
  expect(end['quality']).toMatchObject({ swaps: 0, re_runs: expect.any(Number) as number });
  const resultsFile = String(end['results_file']);
  const results = (await readFile(resultsFile, 'utf8')).split('\n').slice(0, -1).map(toResult);
  expect(results.map(({ index }) => index)).toEqual(prompts.map((_, index) => index));
  // Nothing torn, nothing twice, nothing left over: the files are those of the results and show their prompts.
  const paths = results.map((one) => String(one['file_path']));
  const names = [...paths, resultsFile].map((path) => path.slice(fleet.output.length + 1));
  expect(await fleet.outputFiles()).toEqual(names.sort());
  expect(new Set(paths).size).toBe(IMAGES);
  const shown = await Promise.all(paths.map(promptIn));
  expect(shown).toEqual(prompts);

  // What the manifest alone says of each job is what was answered.
  const manifest = join(fleet.directory, 'laptop', '.local', 'state', 'gantry', 'batches', id, 'manifest.jsonl');
  const { stdout } = await promisify(execFile)(process.execPath, ['scripts/batch-history.mjs', manifest]);
  const history = stdout.trimEnd().split('\n').map(toResult);
  expect(history).toEqual(
    results.map((one) => ({
      index: one.index,
      state: 'done',
      host: one['host'],
      attempts: one.attempts,
      seconds: one.generation_time_seconds,
      file: one['file_path'],
    })),
  );
  expect(results.every(({ attempts }) => attempts >= 1 && attempts <= 3)).toBe(true);
  const saved = (await readFile(manifest, 'utf8')).split('\n').filter((line) => line.startsWith('{"type":"saved"'));
  expect(saved, 'one saved line for each job: nothing finished was done again').toHaveLength(IMAGES);
  for (const host of fleet.hosts.filter(({ isRunning }) => isRunning)) {
    const isAcknowledged = async (): Promise<boolean> => (await statusOf(host)).jobs.length === 0;
    await eventually(`all results of ${host.name} are acknowledged`, isAcknowledged);
  }
}, 400_000);

/** After how many images the bridge is killed, and how many ms later; printed, so that a failure can be looked at. */
function kills(): [number[], number[]] {
  const [chosen] = fc.sample(
    fc.tuple(
      fc.array(fc.integer({ min: 20, max: 420 }), { minLength: 3, maxLength: 3 }),
      fc.array(fc.integer({ min: 0, max: 250 }), { minLength: 3, maxLength: 3 }),
    ),
    1,
  );
  if (chosen === undefined) throw new Error('a sample has one value');
  const [moments, lateMs] = chosen;
  moments.sort((a, b) => a - b);
  process.stdout.write(`big-batch: kills after ${moments.join(', ')} images and ${lateMs.join(', ')} ms\n`);
  return [moments, lateMs];
}

async function completed(bridge: BridgeClient, id: string): Promise<number> {
  const answer = await bridge.ask('get_job', { id, wait_seconds: 0 });
  return (answer['progress'] as { completed: number }).completed; // shape of the tool's schema
}

async function killed(bridge: BridgeClient): Promise<void> {
  const { pid } = bridge.transport;
  if (pid === null) throw new Error('the bridge does not run');
  process.kill(pid, 'SIGKILL');
  await eventually('the bridge is gone', async () => !(await isAlive(pid)));
}

/** Agent and engines at once, as a machine that loses its power. */
async function killHost(host: SimulatedHost): Promise<void> {
  const own = (await processesNaming(host.directory)).filter(({ pid }) => pid !== process.pid && pid !== host.pid);
  const agentEnds = host.stopAgent('SIGKILL');
  for (const { pid } of own) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It ended with its server.
    }
  }
  await agentEnds;
}

function toResult(line: string): Result {
  return JSON.parse(line) as Result; // what the bridge wrote; the assertions are about its values
}

/** The prompt that a whole picture carries in its text chunk; throws when it does not decode to its last pixel. */
async function promptIn(path: string): Promise<string | undefined> {
  const bytes = await readFile(path);
  await sharp(bytes, { failOn: 'truncated' }).raw().toBuffer();
  return readTextChunks(bytes)
    .find(({ keyword }) => keyword === 'parameters')
    ?.text.split('\n')[0];
}
