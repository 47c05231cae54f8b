import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { pause } from '../../shared/abort.ts';
import { eventually } from '../helpers/fleet.ts';
import { modelOf } from '../helpers/host-status.ts';
import { SMALL, loaded, startBatch, startFleet, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig } from './scale.ts';

const FLOOD_MBPS = 100;
const FLOOD_SECONDS = 8;
/** What is written between two looks at the size of a log, on a machine that is slow to look. */
const BETWEEN_LOOKS_MIB = 4 * FLOOD_MBPS;

describe('a model server writes what it should not', () => {
  fault('F11', 'garbage, then a truncated image from the engine', async (row) => {
    await using fleet = await startFleet({ a: { garbage: 1, truncate: 2 } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    row.injected();
    const id = await startBatch(bridge, 3);
    expect(await untilEnded(bridge, id)).toBe('success');
    const failed = (await manifestOf(fleet, id)).filter((line) => line.type === 'attempt-failed');
    expect(failed.map(({ error }) => error.code)).toEqual(['RESULT_INVALID', 'RESULT_INVALID']);
    expect(fleet.host('a').events('model-failed'), 'the server is not to blame for long').toEqual([]);
    await expectHistory(fleet, id);
    row.holds('each attempt fails at once, RESULT_INVALID; every image comes by another one');
  });

  fault('F11', 'an image of another size than asked', async (row) => {
    await using fleet = await startFleet({ a: { 'force-size': '320x192' } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const answer = await bridge.ask('generate_image', { ...SMALL, prompt: 'a fox' });
    expect(answer['parameters_used']).toMatchObject({ width: 320, height: 192 });
    expect(JSON.stringify(answer['notes'])).toMatch(/320x192/);
    row.holds('saved, and said');
  });

  fault('F12', 'log flood 100 MB/s', async (row) => {
    // A young agent grows whatever happens, by 10 MiB in these seconds, until its heap is first collected. Only what it
    // needs more than a twin of the same age and with the same work is the flood's doing.
    await using fleet = await startFleet({
      a: { klein: loaded(), second: second({ 'log-flood': FLOOD_MBPS }) },
      twin: { klein: loaded(), second: second() },
    });
    await untilReady(fleet);
    const [host, twin] = [fleet.host('a'), fleet.host('twin')];
    const bridge = await fleet.bridge(bridgeConfig());
    const onBoth = (tool: string, args: Record<string, unknown>): Promise<Record<string, unknown>[]> =>
      Promise.all([host, twin].map(({ name }) => bridge.ask(tool, { ...args, host: name })));
    await onBoth('generate_image', { ...SMALL, prompt: 'a fox' });
    row.injected();
    await onBoth('load_model', { model: SECOND, wait_seconds: 45 });
    let mostOnDiskMiB = 0;
    const never = new AbortController().signal;
    const endMs = performance.now() + FLOOD_SECONDS * 1_000;
    while (performance.now() < endMs) {
      mostOnDiskMiB = Math.max(mostOnDiskMiB, await logsMiB(host.directory));
      await pause(100, never);
    }
    // Before another image comes: when the memory of one is collected is chance.
    const grownMiB = (await mostRssMiB(host.pid)) - (await mostRssMiB(twin.pid));
    const [answer] = await onBoth('generate_image', { ...SMALL, prompt: 'a fox', model: SECOND });
    expect(answer?.['status'], 'the child is not blocked').toBe('success');
    expect((await modelOf(host, 'second')).state).toBe('ready');
    row.holds('child not blocked');
    expect(mostOnDiskMiB, 'MiB of logs').toBeLessThan(20 * (5 + 1) + BETWEEN_LOOKS_MIB);
    row.holds(`files capped: ${Math.round(mostOnDiskMiB)} MiB at most`);
    expect(grownMiB, 'MiB that the agent needed more than its twin').toBeLessThan(20);
    row.holds(`agent RSS ${Math.round(grownMiB)} MiB above its twin's`);
    await eventually('it can be ended', () => onBoth('release_gpu', { model: SECOND, wait_seconds: 45 }));
  });
});

const SECOND = 'Tongyi-MAI/Z-Image-Turbo';

/** Loaded on demand, beside the first. */
function second(flags: Parameters<typeof loaded>[0] = {}) {
  return loaded(flags, { model: SECOND, preload: false });
}

/** The most that it ever had: nothing is missed between two looks. */
async function mostRssMiB(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

async function logsMiB(directory: string): Promise<number> {
  const names = await readdir(join(directory, 'logs')).catch(() => []);
  const sizes = await Promise.all(
    names.map(async (name) => (await stat(join(directory, 'logs', name)).catch(() => undefined))?.size ?? 0), // rotated away
  );
  return sizes.reduce((sum, size) => sum + size, 0) / 1024 ** 2;
}
