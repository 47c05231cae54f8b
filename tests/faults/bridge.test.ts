import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, vi } from 'vitest';
import { BatchLock } from '../../bridge/fleet/batch-lock.ts';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { SEVERAL_AT_ONCE } from '../helpers/at-once.ts';
import type { TestFleet } from '../helpers/fleet.ts';
import { eventually, isAlive } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';
import { progressOf, SMALL, startBatch, startFleet, untilDone, untilEnded, untilReady, untilRunning } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig, FACTOR, scaledMs } from './scale.ts';
import { StdioClient } from './stdio-client.ts';

// They mostly wait, and no bound of theirs is tight.
vi.setConfig(SEVERAL_AT_ONCE);

const LAPTOP = 'laptop';
/** What a client allows for a machine that stands still; together with its time-out less than the job takes. */
const PATIENCE_MS = 4_000;

describe('the bridge dies', () => {
  fault('F16', 'second bridge on the same batch', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const first = await fleet.bridge(bridgeConfig(), LAPTOP);
    const second = await fleet.bridge(bridgeConfig(), LAPTOP);
    const unwanted = await startBatch(first, 20, { output_dir: join(fleet.directory, 'unwanted') });
    await untilDone(second, unwanted, 1);
    expect(await holderOf(fleet, unwanted)).toBe(first.transport.pid);
    row.holds('it works and shows the batch, which the first one holds');
    row.injected();
    const cancelled = await row.sees('cancel_batch reaches the holder', 1_000 / FACTOR, () =>
      second.ask('cancel_batch', { batch_id: unwanted }),
    );
    expect(cancelled).toMatchObject({ status: 'cancelled', batch_id: unwanted });
    const id = await startBatch(first);
    await untilDone(second, id, 2);
    row.injected();
    kill(first);
    await row.sees('once the holder is dead the second resumes it', 5_000 / FACTOR, async () => {
      await progressOf(second, id); // a tool call is what makes it look
      return (await holderOf(fleet, id)) === second.transport.pid;
    });
    expect(await untilEnded(second, id)).toBe('success');
    await expectHistory(fleet, id);
    await expectTakenOnce(fleet, id);
    row.holds('every image once');
  });

  fault('F19', 'bridge SIGKILLed mid-batch, the next one is asked', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const first = await fleet.bridge(bridgeConfig(), LAPTOP);
    const id = await startBatch(first);
    await untilDone(first, id, 3);
    kill(first);
    const second = await fleet.bridge(bridgeConfig(), LAPTOP);
    expect(await untilEnded(second, id)).toBe('success');
    await expectHistory(fleet, id);
    await expectTakenOnce(fleet, id);
    row.holds('resumed at the first tool call, no image made twice');
  });

  fault('F19', 'bridge SIGKILLed mid-batch, the next one is asked nothing', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const first = await fleet.bridge(bridgeConfig(), LAPTOP);
    const id = await startBatch(first, 5);
    await untilDone(first, id, 2);
    const pid = first.transport.pid ?? 0;
    kill(first);
    await eventually('it writes no more', async () => !(await isAlive(pid)));
    const fromLine = (await manifestOf(fleet, id)).length;
    await fleet.bridge(bridgeConfig(), LAPTOP);
    row.injected();
    await row.sees('resumed 5 s after initialized', 5_000 / FACTOR, async () => {
      return (await manifestOf(fleet, id))[fromLine];
    });
    await eventually('it ends', async () => (await manifestOf(fleet, id)).find(({ type }) => type === 'ended'));
    await expectHistory(fleet, id);
    await expectTakenOnce(fleet, id);
    row.holds('no image made twice');
  });

  fault('F23', 'laptop slept', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    // The network of a laptop comes back a while after the laptop.
    const { times } = bridgeConfig();
    const bridge = await fleet.bridge({ times: { ...times, reconnect_first: '1s', reconnect_max: '1s' } });
    const id = await startBatch(bridge, 16);
    await untilDone(bridge, id, 2);
    for (const host of fleet.hosts) await untilRunning(host);
    const { pid } = bridge.transport;
    if (pid === null) throw new Error('the bridge has no pid');
    process.kill(pid, 'SIGSTOP');
    await eventually('longer than the silence', async () => {
      const ended = fleet.hosts.map((host) => host.events('bridge-disconnected').length);
      return ended.every((count) => count > 0);
    });
    process.kill(pid, 'SIGCONT');
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    await expectTakenOnce(fleet, id);
    row.holds('no job is given up, none is made twice');
  });
});

describe('the MCP client', () => {
  fault('F20', 'client ends the input', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    await expectDetached(row, { fleet, leave: async (client) => client.endInput() });
  });

  fault('F20', 'client SIGKILLed', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    await expectDetached(row, { fleet, leave: (client) => client.kill() });
  });

  fault('F20', 'client cancels the call, or gives up waiting', async (row) => {
    await using fleet = await startFleet({ a: { 'step-ms': 600 } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig(), LAPTOP);
    await bridge.ask('list_hosts'); // the links are up: what follows is written down at once
    const impatient = bridge.call('generate_image', { ...SMALL, prompt: 'impatient' }, { timeoutMs: 1_500 });
    await expect(impatient).rejects.toThrow(/timed out/);
    const stop = new AbortController();
    const long = { ...SMALL, prompt: 'unwanted', num_inference_steps: 40 }; // it is not done before it is cancelled
    const wanted = bridge.call('generate_image', long, { signal: stop.signal });
    await untilDone(bridge, await batchOf(fleet, 'impatient'), 1);
    row.holds('a cancel for a time-out leaves the job');
    row.injected();
    stop.abort('the user pressed stop');
    await expect(wanted).rejects.toThrow();
    const unwanted = await batchOf(fleet, 'unwanted');
    await row.sees('any other cancels it', 2_000, async () => {
      return (await manifestOf(fleet, unwanted)).find((line) => line.type === 'ended' && line.state === 'cancelled');
    });
    await expectHistory(fleet, await batchOf(fleet, 'impatient'));
  });

  fault('F21', 'client time-out 60 s on a longer job', async (row) => {
    await using fleet = await startFleet({ a: { 'step-ms': scaledMs(30_000) } });
    await untilReady(fleet);
    const bridge = await fleet.bridge({ ...bridgeConfig(), sync_wait: `${scaledMs(45_000)}ms` }, LAPTOP);
    row.injected();
    // A client's clock runs on while the machine stands still.
    const timeoutMs = scaledMs(60_000) + PATIENCE_MS;
    const call = bridge.ask('generate_image', { ...SMALL, prompt: 'slow' }, { timeoutMs });
    const handle = await row.sees('handle returned', 45_000, () => call);
    expect(handle).toMatchObject({ status: 'running', job_id: expect.any(String) as string });
    const result = await bridge.ask('get_job', { id: handle['job_id'], wait_seconds: 45 });
    expect(result).toMatchObject({ state: 'success' });
    await expectHistory(fleet, String(handle['batch_id']));
    row.holds('result by get_job');
  });
});

describe('a job that kills', () => {
  fault('F38', 'poison prompt kills its server each time', async (row) => {
    await using fleet = await startFleet({ a: { 'crash-on': 'poison' }, b: { 'crash-on': 'poison' } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const prompts = ['picture 0', 'poison', ...Array.from({ length: 6 }, (_, index) => `picture ${index + 2}`)];
    const { batch_id: batchId } = await bridge.ask('batch_generate', { ...SMALL, prompts, wait_seconds: 0 });
    const id = String(batchId);
    expect(await untilEnded(bridge, id)).toBe('partial');
    const { results } = await bridge.ask('get_job', { id });
    expect(results).toContainEqual(
      expect.objectContaining({ index: 1, error: expect.stringContaining('QUARANTINED') as string }),
    );
    const deaths = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'attempt-failed' ? [line] : []));
    expect(deaths.map(({ host, serverDied }) => ({ host, serverDied }))).toEqual(
      expect.arrayContaining([
        { host: 'a', serverDied: true },
        { host: 'b', serverDied: true },
      ]),
    );
    expect(deaths).toHaveLength(2);
    row.holds('quarantined after the second server death, one on each host');
    await expectHistory(fleet, { id, failed: [1] });
    row.holds('the rest of the batch is done');
    for (const host of fleet.hosts) {
      await eventually(`${host.name} is back`, async () => (await modelOf(host, 'klein')).state === 'ready', 30_000);
    }
    row.holds('both servers back and ready');
  });
});

/** Ends a client in the middle of a batch: its bridge lets go in time, what was accepted is made, and fetched later. */
async function expectDetached(
  row: Parameters<Parameters<typeof fault>[2]>[0],
  { fleet, leave }: { fleet: TestFleet; leave: (client: StdioClient) => Promise<void> },
): Promise<void> {
  const host = fleet.host('a');
  // Its home and its bridge.yaml; it opens nothing by itself.
  await (await fleet.bridge(bridgeConfig(), LAPTOP))[Symbol.asyncDispose]();
  await using client = await StdioClient.start(join(fleet.directory, LAPTOP));
  const prompts = Array.from({ length: 8 }, (_, index) => `picture ${index}`);
  const { batch_id: batchId } = await client.ask('batch_generate', { ...SMALL, prompts, wait_seconds: 0 });
  const id = String(batchId);
  const pid = await client.bridgePid();
  await eventually('one is done', async () => (await manifestOf(fleet, id)).some(({ type }) => type === 'saved'));
  await untilRunning(host);
  row.injected();
  await leave(client);
  await row.sees('the bridge has ended', 2_000 / FACTOR, async () => !(await isAlive(pid)));
  expect(await client.ended(), 'its exit code').toBe(0);
  const { snapshot } = await statusOf(host);
  expect(snapshot.offered).toEqual([]);
  row.holds('offers withdrawn');
  const isAllDone = (): boolean => host.events('job-done').length === host.events('job-accepted').length;
  await eventually('what was accepted is done', () => Promise.resolve(isAllDone()));
  const made = host.events('job-done').length;
  expect((await manifestOf(fleet, id)).filter(({ type }) => type === 'saved').length).toBeLessThan(made);
  row.holds('accepted jobs run on');
  const next = await fleet.bridge(bridgeConfig(), LAPTOP);
  expect(await untilEnded(next, id)).toBe('success');
  await expectHistory(fleet, id);
  await expectTakenOnce(fleet, id);
  row.holds('and are fetched later');
}

function kill({ transport }: BridgeClient): void {
  if (transport.pid === null) throw new Error('the bridge has no pid');
  process.kill(transport.pid, 'SIGKILL');
}

/** Each job of the batch was accepted by one host, once: nothing was made in vain. */
async function expectTakenOnce(fleet: TestFleet, id: string): Promise<void> {
  const jobs = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'job' ? [line.jobId] : []));
  const accepted = fleet.hosts.flatMap((host) => host.events('job-accepted').map(({ jobId }) => jobId));
  for (const jobId of jobs) expect(accepted.filter((one) => one === jobId)).toHaveLength(1);
}

/** The pid of who has the lock of a batch. */
async function holderOf(fleet: TestFleet, id: string): Promise<number | undefined> {
  const lock = await BatchLock.acquire(join(batchesOf(fleet), id), { pid: process.pid, client: 'test' });
  if (!(lock instanceof BatchLock)) return lock.pid;
  await lock[Symbol.asyncDispose](); // nobody had it
  return undefined;
}

/** The batch with the job of this prompt, for calls whose answer nobody heard. */
async function batchOf(fleet: TestFleet, prompt: string): Promise<string> {
  return await eventually(`a batch of ${prompt}`, async () => {
    for (const id of await readdir(batchesOf(fleet)).catch(() => [])) {
      const text = await readFile(join(batchesOf(fleet), id, 'manifest.jsonl'), 'utf8').catch(() => '');
      if (text.includes(`"prompt":"${prompt}"`)) return id;
    }
    return undefined;
  });
}

function batchesOf(fleet: TestFleet): string {
  return join(fleet.directory, LAPTOP, '.local', 'state', 'gantry', 'batches');
}
