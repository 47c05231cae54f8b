import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { imageOf, isOpenAfter, type Reply, SimHost, SimServer } from './sim-server.ts';

let host: SimHost;
beforeAll(async () => {
  host = await SimHost.create();
});
afterAll(() => host[Symbol.asyncDispose]());

describe('faults', () => {
  test('--garbage, --truncate and --never-answer hit the image with their number only', async () => {
    await using server = await SimServer.omni(host, ['--garbage', '1', '--truncate', '2', '--never-answer', '4']);
    await expect(sharp(imageOf(await server.generate())).metadata()).rejects.toThrow();
    const cut = imageOf(await server.generate());
    expect((await sharp(cut).metadata()).width).toBe(64);
    await expect(sharp(cut).raw().toBuffer()).rejects.toThrow();
    expect((await sharp(imageOf(await server.generate())).stats()).isOpaque).toBe(true);
    const leaving = new AbortController();
    const never = server.generate({}, leaving.signal);
    expect(await isOpenAfter(never, 300)).toBe(true);
    expect((await server.generate()).status).toBe(200);
    leaving.abort();
    await expect(never).rejects.toThrow();
  });

  test.each(['exception', 'engine-output'])('--oom %s --oom-at 2: a 500, and the engine lives on', async (style) => {
    await using server = await SimServer.omni(host, ['--oom', style, '--oom-at', '2']);
    const replies: Reply[] = [];
    for (let count = 0; count < 3; count += 1) replies.push(await server.generate());
    expect(replies.map(({ status }) => status)).toEqual([200, 500, 200]);
    const error = replies[1]?.at('error');
    const message = replies[1]?.at('error.message');
    expect(message).toContain('CUDA out of memory. Tried to allocate 2.00 GiB.');
    if (style === 'exception') {
      expect(error).toMatchObject({ type: 'Internal Server Error', code: 500 });
      expect(message).toMatch(/^Image generation failed: Worker failed with error/);
    } else {
      expect(error).toMatchObject({ type: 'InternalServerError', error_stage_id: 0 });
      expect(replies[1]?.at('error.request_id')).toMatch(/^img_gen-/);
    }
    expect((await server.get('/health')).status).toBe(200);
  });

  test('--oom die takes the engine', async () => {
    await using server = await SimServer.omni(host, ['--oom', 'die']);
    const reply = await server.generate();
    expect([reply.status, reply.at('error.message')]).toEqual([
      500,
      expect.stringContaining('EngineCore encountered an issue'),
    ]);
    expect(await server.get('/health')).toMatchObject({ status: 503, json: { status: 'unhealthy' } });
    expect((await server.generate()).status).toBe(500);
    expect(server.stderr).toContain('Diffusion worker(s) died unexpectedly');
  });

  test('--oom hang: that request is never answered, and the later ones get its error', async () => {
    await using server = await SimServer.omni(host, ['--oom', 'hang', '--oom-at', '2']);
    expect((await server.generate()).status).toBe(200);
    const leaving = new AbortController();
    const hanging = server.generate({}, leaving.signal);
    await server.says('torch.OutOfMemoryError');
    for (let count = 0; count < 2; count += 1) {
      const reply = await server.generate();
      expect(reply.status).toBe(500);
      expect(reply.at('error.message')).toContain('CUDA out of memory');
    }
    expect(await isOpenAfter(hanging, 200)).toBe(true);
    expect((await server.get('/health')).status).toBe(200);
    leaving.abort();
    await expect(hanging).rejects.toThrow();
  });

  test('--hang-on-n: two images of one request are never made, and nobody else gets a turn', async () => {
    await using server = await SimServer.omni(host, ['--hang-on-n']);
    expect((await server.generate({ n: 1 })).status).toBe(200);
    const leaving = new AbortController();
    const works = [server.generate({ n: 2 }, leaving.signal), server.generate({}, leaving.signal)];
    expect(await isOpenAfter(Promise.race(works), 500)).toBe(true);
    leaving.abort();
    await Promise.allSettled(works);
  });

  test('--poison-after-abort: once a client left, every later request is aborted', async () => {
    await using server = await SimServer.omni(host, ['--poison-after-abort', '--step-ms', '100']);
    expect((await server.generate({ num_inference_steps: 1 })).status).toBe(200);
    expect((await server.generate({ num_inference_steps: 1 })).status, 'an answered client has not left').toBe(200);
    const leaving = new AbortController();
    const abandoned = server.generate({ num_inference_steps: 5 }, leaving.signal);
    await server.says('1/5 [');
    leaving.abort();
    await expect(abandoned).rejects.toThrow();
    for (let count = 0; count < 2; count += 1) {
      const message = 'Image generation failed: Request was aborted.';
      expect(await server.generate()).toMatchObject({ status: 500, json: { error: { message } } });
    }
  });
});
