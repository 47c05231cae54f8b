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
const BETWEEN_LOOKS_MIB = 2 * FLOOD_MBPS;

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
    await row.holds('each attempt fails at once, RESULT_INVALID; every image comes by another one');
  });

  fault('F11', 'an image of another size than asked', async (row) => {
    await using fleet = await startFleet({ a: { 'force-size': '320x192' } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const answer = await bridge.ask('generate_image', { ...SMALL, prompt: 'a fox' });
    expect(answer['parameters_used']).toMatchObject({ width: 320, height: 192 });
    expect(JSON.stringify(answer['notes'])).toMatch(/320x192/);
    await row.holds('saved, and said');
  });

  fault('F12', 'log flood 100 MB/s', async (row) => {
    await using fleet = await startFleet({ a: { klein: loaded(), noisy: noisy() } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const bridge = await fleet.bridge(bridgeConfig());
    // An image first: what the agent needs to decode one is not the flood's doing.
    await bridge.ask('generate_image', { ...SMALL, prompt: 'a fox' });
    const quietMiB = await rssMiB(host.pid);
    row.injected();
    await bridge.ask('load_model', { model: NOISY, wait_seconds: 45 });
    let mostMiB = 0;
    let mostOnDiskMiB = 0;
    const never = new AbortController().signal;
    const endMs = performance.now() + FLOOD_SECONDS * 1_000;
    while (performance.now() < endMs) {
      mostMiB = Math.max(mostMiB, await rssMiB(host.pid));
      mostOnDiskMiB = Math.max(mostOnDiskMiB, await logsMiB(host.directory));
      await pause(100, never);
    }
    const answer = await bridge.ask('generate_image', { ...SMALL, prompt: 'a fox', model: NOISY });
    expect(answer['status'], 'the child is not blocked').toBe('success');
    expect((await modelOf(host, 'noisy')).state).toBe('ready');
    await row.holds('child not blocked');
    expect(mostOnDiskMiB, 'MiB of logs').toBeLessThan(20 * (5 + 1) + BETWEEN_LOOKS_MIB);
    await row.holds(`files capped: ${Math.round(mostOnDiskMiB)} MiB at most`);
    expect(mostMiB - quietMiB, 'MiB that the agent grew').toBeLessThan(20);
    await row.holds(`agent RSS +${Math.round(mostMiB - quietMiB)} MiB`);
    await eventually(
      'it can be ended',
      async () => await bridge.ask('release_gpu', { model: NOISY, wait_seconds: 45 }),
    );
  });
});

const NOISY = 'Tongyi-MAI/Z-Image-Turbo';

function noisy() {
  return { ...loaded({ 'log-flood': FLOOD_MBPS }), model: NOISY, preload: false };
}

async function rssMiB(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

async function logsMiB(directory: string): Promise<number> {
  const names = await readdir(join(directory, 'logs')).catch(() => []);
  const sizes = await Promise.all(
    names.map(async (name) => (await stat(join(directory, 'logs', name)).catch(() => undefined))?.size ?? 0), // rotated away
  );
  return sizes.reduce((sum, size) => sum + size, 0) / 1024 ** 2;
}
