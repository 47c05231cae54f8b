import { readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { TestFleet } from '../helpers/fleet.ts';
import { eventually } from '../helpers/fleet.ts';
import { statusOf } from '../helpers/host-status.ts';
import { startBatch, startFleet, untilDone, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig } from './scale.ts';

const LAPTOP = 'laptop';
/** What an agent keeps in its state directory, results and inputs aside. */
const STATE = ['learned.json', 'servers.json', 'drain.json', 'agent-id'];
const GARBAGE = Buffer.from([0x7b, 0x00, 0xff, 0xfe, 0x0a, 0x22, 0x80, 0x0a, 0x00]);

describe('what is on disk is damaged', () => {
  fault('F17', "power loss: the agent's state, in the middle of a batch", async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const host = fleet.host('a');
    const state = join(host.directory, 'state');
    const bridge = await fleet.bridge(bridgeConfig());
    await writeFile(join(state, 'drain.json'), '{"version":1,"isDraining":false}');
    const id = await startBatch(bridge, 16);
    await untilDone(bridge, id, 3);
    await eventually('one of them by a', () => Promise.resolve(host.events('job-done')[0]));
    await host.stopAgent('SIGKILL');
    await damageLine(join(state, 'journal', 'journal.jsonl'), '{"event":"done"');
    for (const name of STATE) await writeFile(join(state, name), GARBAGE);
    await cutShort(join(state, 'tokens.json'), 5); // the entry of our token is left whole
    await host.startAgent();
    row.holds('starts');
    const bad = [...STATE, 'journal.jsonl', 'tokens.json'].sort();
    // Some are read beside the work of the start.
    await eventually('the status tells of each', async () => {
      const told = (await statusOf(host)).snapshot.problems.join('\n');
      return bad.every((name) => told.includes(`${name} was damaged`));
    });
    row.holds('warnings in the status');
    expect(await corruptFiles(state, join(state, 'journal'))).toEqual(bad);
    row.holds('each bad file is kept as .corrupt-<ts>');
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('the rest used: every image once');
  });

  fault('F17', "power loss: the agent's journal is empty, or cut", async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const host = fleet.host('a');
    const path = join(host.directory, 'state', 'journal', 'journal.jsonl');
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 6);
    for (const [done, damage] of [
      [1, () => truncate(path, 0)],
      [3, () => cutShort(path)],
    ] as const) {
      await untilDone(bridge, id, done);
      await host.stopAgent('SIGKILL');
      await damage();
      await host.startAgent();
    }
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('what it does not know is taken again, every image saved once');
  });

  fault('F17', 'power loss: the manifest', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const host = fleet.host('a');
    const first = await fleet.bridge(bridgeConfig(), LAPTOP);
    const cut = await startBatch(first, 4);
    const flipped = await startBatch(first, 3);
    const unreadable = await startBatch(first, 1, { output_dir: join(fleet.directory, 'elsewhere') });
    for (const id of [cut, flipped, unreadable]) expect(await untilEnded(first, id)).toBe('success');
    // From now on no image can be fetched again.
    await eventually('all is acknowledged', async () => (await statusOf(host)).jobs.length === 0);
    const made = host.events('job-accepted').length;
    kill(first);
    // Between the link and `saved`: the file is there, the line that says so is half written.
    const text = await readFile(pathOf(fleet, cut), 'utf8');
    await writeFile(pathOf(fleet, cut), text.slice(0, text.lastIndexOf('{"type":"saved"') + 100));
    await damageLine(pathOf(fleet, flipped), '{"type":"saved"');
    await writeFile(pathOf(fleet, unreadable), GARBAGE);
    const next = await fleet.bridge(bridgeConfig(), LAPTOP);
    expect(await untilEnded(next, cut)).toBe('success');
    await eventually('the damaged one is mended and ends again', async () => {
      const types = new Set((await manifestOf(fleet, flipped)).map(({ type }) => type));
      return types.has('repaired') && types.has('ended');
    });
    expect(await untilEnded(next, flipped)).toBe('success');
    row.holds('the next bridge goes on with each');
    await expectHistory(fleet, cut, flipped);
    expect(host.events('job-accepted')).toHaveLength(made);
    row.holds('a file that matches its `saving` line is not fetched again');
    expect(await corruptFiles(dirname(pathOf(fleet, cut)))).toEqual([]);
    expect(await corruptFiles(dirname(pathOf(fleet, flipped)))).toEqual(['manifest.jsonl']);
    expect(await corruptFiles(dirname(pathOf(fleet, unreadable)))).toEqual(['manifest.jsonl']);
    row.holds('bad files are kept as .corrupt-<ts>, half a last line is none');
    const { notes } = await next.ask('get_job', { id: flipped });
    expect(String(notes)).toMatch(/One line of the record .* could not be read.*corrupt-/);
    const answer = await next.call('get_job', { id: unreadable });
    expect(answer.text).toMatch(/damaged .*corrupt-/);
    row.holds('get_job says so');
  });
});

function kill({ transport }: BridgeClient): void {
  if (transport.pid === null) throw new Error('the bridge has no pid');
  process.kill(transport.pid, 'SIGKILL');
}

function pathOf(fleet: TestFleet, id: string): string {
  return join(fleet.directory, LAPTOP, '.local', 'state', 'gantry', 'batches', id, 'manifest.jsonl');
}

/** What was damaged in these directories, by the names of what is kept of it. */
async function corruptFiles(...directories: readonly string[]): Promise<string[]> {
  const names = (await Promise.all(directories.map((directory) => readdir(directory)))).flat();
  return names.flatMap((name) => /^(.+)\.corrupt-\d+$/.exec(name)?.[1] ?? []).sort();
}

/** One bit of the first line that begins so. */
async function damageLine(path: string, beginning: string): Promise<void> {
  const bytes = await readFile(path);
  const at = bytes.indexOf(beginning) + 30;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await writeFile(path, bytes);
}

/** As a power cut in the middle of a write leaves it. */
async function cutShort(path: string, bytes = 30): Promise<void> {
  const { size } = await stat(path);
  await truncate(path, size - bytes);
}
