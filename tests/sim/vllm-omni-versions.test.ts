import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, imageOf, isOpenAfter, SimHost, SimServer } from './sim-server.ts';

let host: SimHost;
beforeAll(async () => {
  host = await SimHost.create();
});
afterAll(() => host[Symbol.asyncDispose]());

const image = await sharp({ create: { width: 120, height: 70, channels: 3, background: '#336699' } })
  .png()
  .toBuffer();

describe('answers', () => {
  test('--size-field: echo says what was asked for, real says what the pixels are', async () => {
    await using echo = await SimServer.omni(host, ['--size-field', 'echo']);
    await using real = await SimServer.omni(host, ['--size-field', 'real']);
    for (const [server, size] of [
      [echo, '100x72'],
      [real, '96x64'],
    ] as const) {
      const reply = await server.generate({ size: '100x72' });
      expect(reply.at('size')).toBe(size);
      expect(await sharp(imageOf(reply)).metadata()).toMatchObject({ width: 96, height: 64 });
    }
    const edited = await real.postForm('/v1/images/edits', { image, prompt: 'x' });
    expect(edited.at('size')).toBe('112x64');
  });

  test('--force-size: these pixels, whatever was asked for', async () => {
    await using server = await SimServer.omni(host, ['--force-size', '80x48']);
    const reply = await server.generate({ size: '64x64' });
    expect(reply.at('size')).toBe('64x64');
    expect(await sharp(imageOf(reply)).metadata()).toMatchObject({ width: 80, height: 48 });
  });

  test('--response-shape: metrics are new, and so is all but the pictures', async () => {
    await using older = await SimServer.omni(host, ['--response-shape', 'no-metrics']);
    await using oldest = await SimServer.omni(host, ['--response-shape', 'minimal']);
    expect((await older.generate()).keys()).toEqual(['created', 'data', 'output_format', 'size', 'cot_output']);
    const reply = await oldest.generate();
    expect(reply.keys()).toEqual(['created', 'data']);
    expect((await sharp(imageOf(reply)).metadata()).width).toBe(64);
    expect((await oldest.postForm('/v1/images/edits', { image, prompt: 'x' })).keys()).toEqual(['created', 'data']);
  });

  test('--first-image-only: an edit that was to give two gives one', async () => {
    await using all = await SimServer.omni(host);
    await using first = await SimServer.omni(host, ['--first-image-only']);
    const edit = { image, prompt: 'x', n: '2', num_inference_steps: '1' };
    expect((await all.postForm('/v1/images/edits', edit)).at('data')).toHaveLength(2);
    expect((await first.postForm('/v1/images/edits', edit)).at('data')).toHaveLength(1);
    expect((await first.generate({ n: 2 })).at('data')).toHaveLength(2);
  });

  test('--multi-stage: always PNG, no size and no format, and an edit that fails tells nothing', async () => {
    await using server = await SimServer.omni(host, ['--multi-stage']);
    const reply = await server.generate({ output_format: 'webp', response_format: 'file' });
    expect(reply.json).toMatchObject({ output_format: null, size: null });
    expect((await sharp(imageOf(reply)).metadata()).format).toBe('png');
    const failed = await server.postForm('/v1/images/edits', { image: Buffer.from('no picture'), prompt: 'x' });
    const message = "'ErrorResponse' object has no attribute 'message'";
    expect(failed).toMatchObject({ status: 500, json: { error: { message, code: 500 } } });
    expect((await server.postForm('/v1/images/edits', { prompt: 'x' })).status).toBe(422);
  });

  test('--accept-any-model: another name is served, with a warning in the log', async () => {
    await using server = await SimServer.omni(host, ['--accept-any-model']);
    expect((await server.generate({ model: 'another' })).status).toBe(200);
    expect(server.stderr).toMatch(/WARNING .*Model mismatch: request specifies 'another'/);
  });
});

describe('health and metrics', () => {
  test('--health 503, from the start or from an image on', async () => {
    await using never = await SimServer.spawnOmni(host, ['--health', '503']);
    await never.says('Application startup complete');
    const unhealthy = { status: 'unhealthy', reason: 'No engine initialized' };
    expect(await never.get('/health')).toMatchObject({ status: 503, json: unhealthy });
    expect((await never.get('/v1/models')).status).toBe(200);
    await using later = await SimServer.omni(host, ['--health', '503', '--health-from', '1']);
    await later.generate();
    expect((await later.get('/health')).status).toBe(503);
  });

  test('--health hang answers nothing there, and everything elsewhere', async () => {
    await using server = await SimServer.omni(host, ['--health', 'hang', '--health-from', '1']);
    expect((await server.get('/health')).status).toBe(200);
    expect((await server.generate()).status).toBe(200);
    const leaving = new AbortController();
    const health = server.get('/health', {}, leaving.signal);
    expect((await server.get('/version')).status).toBe(200);
    expect(await isOpenAfter(health, 300)).toBe(true);
    leaving.abort();
    await expect(health).rejects.toThrow();
  });

  test('--health-body empty', async () => {
    await using server = await SimServer.omni(host, ['--health-body', 'empty']);
    const { status, text } = await server.get('/health');
    expect([status, text]).toEqual([200, '']);
  });

  test('--metrics-prefix: the interim name, and none of ours', async () => {
    await using interim = await SimServer.omni(host, ['--log-stats', '--metrics-prefix', 'vllm:omni']);
    const { text } = await interim.get('/metrics');
    expect(text).toContain('vllm:omni_num_requests_running{model_name="org/model"} 0.0');
    expect(text).not.toContain('vllm_omni');
    await using none = await SimServer.omni(host, ['--log-stats', '--metrics-prefix', 'none']);
    expect((await none.get('/metrics')).text).not.toMatch(/omni/);
  });

  test('--metrics-waiting-zero: what waits counts as running', async () => {
    await using server = await SimServer.omni(host, ['--metrics-waiting-zero', '--log-stats', '--generate-ms', '500']);
    const works = [server.generate(), server.generate()];
    await eventually('both are counted', async () => {
      const { text } = await server.get('/metrics');
      expect(text).toContain('requests_waiting{model_name="org/model"} 0.0');
      return text.includes('requests_running{model_name="org/model"} 2.0');
    });
    await Promise.all(works);
  });
});
