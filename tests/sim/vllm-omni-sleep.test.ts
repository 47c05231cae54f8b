import { describe, expect, test } from 'vitest';
import { entryOf, eventually, isOpenAfter, SimHost, SimServer } from './sim-server.ts';

describe('memory', () => {
  test('weights after the load, peak and busy while it works, weights again, all gone with the process', async () => {
    await using host = await SimHost.create();
    {
      await using server = await SimServer.omni(host, ['--generate-ms', '300']);
      expect(entryOf(host)).toMatchObject({ pid: server.pid, usedMiB: 20_000, name: 'vLLM-Omni::DiffusionWorker' });
      const work = server.generate();
      await eventually('it is busy at its peak', () => entryOf(host).usedMiB === 24_000 && !!entryOf(host).isBusy);
      await work;
      expect(entryOf(host)).toMatchObject({ usedMiB: 20_000 });
      expect(entryOf(host).isBusy).toBeUndefined();
    }
    expect(host.usedMiB()).toBe(0);
  });

  test('a peak that does not fit is a CUDA OOM for this request only', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    host.plant(58_000);
    const reply = await server.generate();
    expect(reply.status).toBe(500);
    expect(reply.at('error.message')).toContain(
      'CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity',
    );
    host.plant(50_000);
    expect((await server.generate()).status).toBe(200);
    expect(host.usedMiB()).toBe(70_000);
  });
});

describe('sleep and wake', () => {
  test('level 1 keeps the residue, wake takes the weights back, and both say what they did', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    expect((await server.wake()).json).toEqual({ status: 'SKIPPED', reason: 'Target stages are not sleeping.' });
    const slept = await server.sleep();
    expect(slept.json).toMatchObject({
      status: 'SUCCESS',
      acks: [{ status: 'SUCCESS', stage_id: 0, rank: 0, freed_bytes: 18_500 * 2 ** 20, error_msg: null }],
    });
    expect(slept.at('acks.0.metadata')).toMatchObject({
      source: 'Platform_Simulated H100',
      total_freed_gib: '18.07',
      rank_residual_gib: '1.46',
    });
    expect(host.usedMiB()).toBe(1_500);
    expect((await server.get('/health')).status).toBe(200);
    const woken = await server.wake();
    expect(woken.at('acks.0')).toMatchObject({
      status: 'SUCCESS',
      freed_bytes: 0,
      metadata: { state: 'WARM', current_vram_gib: '19.53' },
    });
    expect(host.usedMiB()).toBe(20_000);
    expect((await server.generate()).status).toBe(200);
  });

  test('--residual-mib stays, and --sleep-ms is how long it takes', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--residual-mib', '2500', '--sleep-ms', '400']);
    const startedMs = performance.now();
    await server.sleep();
    expect(performance.now() - startedMs).toBeGreaterThanOrEqual(395);
    expect(host.usedMiB()).toBe(2_500);
  });

  test('stage_ids are required and the level defaults to 2, which the engine does not survive', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    expect((await server.sleep({ level: 1 })).at('error.message')).toContain("('body', 'stage_ids')");
    expect((await server.sleep({ stage_ids: [0], level: 3 })).status).toBe(400);
    expect((await server.sleep({ stage_ids: [0] })).at('status')).toBe('SUCCESS');
    expect((await server.wake()).status).toBe(500);
  });

  test('without --enable-sleep-mode it says SUCCESS and frees nothing', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omniWithoutSleepMode(host);
    const reply = await server.sleep();
    expect([reply.at('status'), reply.at('acks.0.status'), reply.at('acks.0.freed_bytes')]).toEqual([
      'SUCCESS',
      'SUCCESS',
      0,
    ]);
    expect(host.usedMiB()).toBe(20_000);
  });

  test('--free-only-mib frees less than it says, --sleep-ack-error nothing inside a 200', async () => {
    await using host = await SimHost.create();
    await using liar = await SimServer.omni(host, ['--free-only-mib', '6000']);
    expect((await liar.sleep()).at('acks.0.freed_bytes')).toBe(18_500 * 2 ** 20);
    expect(host.usedMiB()).toBe(14_000);
    await using failing = await SimServer.omni(host, ['--sleep-ack-error'], { CUDA_VISIBLE_DEVICES: '1' });
    const reply = await failing.sleep();
    expect(reply).toMatchObject({ status: 200, json: { status: 'SUCCESS', acks: [{ status: 'ERROR' }] } });
    expect(reply.at('acks.0.error_msg')).toContain('CUDA error');
    expect(host.usedMiB('GPU-two')).toBe(20_000);
    expect((await failing.generate()).status).toBe(200);
  });

  test('--wake-oom, and memory that was taken meanwhile: 500, and nothing works afterwards', async () => {
    await using host = await SimHost.create();
    await using told = await SimServer.omni(host, ['--wake-oom'], { CUDA_VISIBLE_DEVICES: 'GPU-two' });
    await using robbed = await SimServer.omni(host);
    for (const server of [told, robbed]) {
      await server.sleep();
      if (server === robbed) host.plant(70_000);
      const reply = await server.wake();
      expect([reply.status, reply.at('error.message')]).toEqual([500, expect.stringContaining('CUDA out of memory')]);
    }
    expect([host.usedMiB('GPU-two'), host.usedMiB('GPU-one')]).toEqual([1_500, 71_500]);
  });

  test('sleep with a request in flight takes the engine', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--generate-ms', '2000']);
    const work = server.generate();
    await eventually('it works', () => !!entryOf(host).isBusy);
    await server.sleep();
    expect((await work).at('error.message')).toContain('EngineCore encountered an issue');
    expect((await server.get('/health')).status).toBe(503);
  });
});

describe('a request while asleep', () => {
  test('hangs until the engine wakes', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    await server.sleep();
    const work = server.generate();
    expect(await isOpenAfter(work, 300)).toBe(true);
    await server.wake();
    expect((await work).status).toBe(200);
  });

  test('--asleep 500 refuses it', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--asleep', '500']);
    await server.sleep();
    const reply = await server.generate();
    expect([reply.status, reply.at('error.message')]).toEqual([
      500,
      expect.stringContaining('partially or fully asleep'),
    ]);
    await server.wake();
    expect((await server.generate()).status).toBe(200);
  });

  test('--asleep die takes the engine', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--asleep', 'die']);
    await server.sleep();
    expect((await server.generate()).at('error.message')).toContain('EngineCore encountered an issue');
    expect((await server.get('/health')).status).toBe(503);
    expect(host.usedMiB()).toBe(0);
  });
});
