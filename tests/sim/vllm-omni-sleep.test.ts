import sharp from 'sharp';
import { describe, expect, test } from 'vitest';
import { entryOf, eventually, imageOf, isOpenAfter, SimHost, SimServer } from './sim-server.ts';

const MEGAPIXEL = { size: '1024x1024', num_inference_steps: 1 };

describe('memory', () => {
  test('weights after the load, peak and busy while it works, weights again, all gone with the process', async () => {
    await using host = await SimHost.create();
    {
      await using server = await SimServer.omni(host, ['--generate-ms', '300']);
      expect(entryOf(host)).toMatchObject({ pid: server.pid, usedMiB: 20_000, name: 'vLLM-Omni::DiffusionWorker' });
      const work = server.generate(MEGAPIXEL);
      await eventually('it is busy at its peak', () => entryOf(host).usedMiB === 24_000 && !!entryOf(host).isBusy);
      await work;
      expect(entryOf(host)).toMatchObject({ usedMiB: 20_000 });
      expect(entryOf(host).isBusy).toBeUndefined();
    }
    expect(host.usedMiB()).toBe(0);
  });

  test('--peak-mib is the peak of 1024 x 1024; what lies above the weights grows with the pixels and the images', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--peak-mib', '36000']);
    const peak = async (parameters: object) =>
      (await server.generate({ num_inference_steps: 1, ...parameters })).at('metrics.peak_memory_mb');
    expect(await peak({ size: '512x256' })).toBe(20_000 + 2_000);
    expect(await peak({ size: '512x512', n: 2 })).toBe(20_000 + 8_000);
  });

  test('a peak that does not fit is a CUDA OOM for this request only', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    host.plant(58_000);
    const reply = await server.generate(MEGAPIXEL);
    expect(reply.status).toBe(500);
    // The card has 80000 MiB, of which the driver keeps 500.
    expect(reply.at('error.message')).toContain(
      'CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of 78.13 GiB of which 1.46 GiB is free. ' +
        'Including non-PyTorch memory, this process has 19.53 GiB memory in use.',
    );
    expect((await server.generate()).status, 'a small one fits').toBe(200);
    host.plant(50_000);
    expect((await server.generate(MEGAPIXEL)).status).toBe(200);
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

  test('--wake-ack-error: ERROR inside a 200, the memory stays away, and nothing works afterwards', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--wake-ack-error', '--asleep', '500']);
    await server.sleep();
    const reply = await server.wake();
    expect(reply).toMatchObject({ status: 200, json: { status: 'SUCCESS', acks: [{ status: 'ERROR' }] } });
    expect(reply.at('acks.0.error_msg')).toContain('CUDA out of memory');
    expect(host.usedMiB()).toBe(1_500);
    expect((await server.generate()).status).toBe(500);
  });

  test('--level2-wake: 500 and unusable, or success and noise instead of pictures', async () => {
    await using host = await SimHost.create();
    await using newer = await SimServer.omni(host, ['--level2-wake', '500', '--asleep', '500']);
    await using older = await SimServer.omni(host, ['--level2-wake', 'garbage'], { CUDA_VISIBLE_DEVICES: '1' });
    const before = await older.generate();
    for (const server of [newer, older]) await server.sleep({ stage_ids: [0], level: 2 });
    expect(await newer.wake()).toMatchObject({ status: 500 });
    expect((await newer.generate()).status).toBe(500);
    expect((await older.wake()).at('acks.0.status')).toBe('SUCCESS');
    expect(host.usedMiB('GPU-two')).toBe(20_000);
    const after = await older.generate();
    // Decodable, of the right size, and without anything that a picture has: noise does not compress.
    expect(await sharp(imageOf(after)).metadata()).toMatchObject({ format: 'png', width: 64, height: 64 });
    expect(imageOf(after).length).toBeGreaterThan(imageOf(before).length * 2);
  });

  test('--sleep-crash: the text of 0.20.x, and nothing has changed', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--sleep-crash']);
    const message = "'State' object has no attribute 'sleeping_stages'";
    expect(await server.sleep()).toMatchObject({ status: 500, json: { error: { message, code: 500 } } });
    expect(host.usedMiB()).toBe(20_000);
    expect((await server.generate()).status).toBe(200);
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
