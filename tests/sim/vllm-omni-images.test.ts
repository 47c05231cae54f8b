import { readFile } from 'node:fs/promises';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, imageOf, SimHost, SimServer } from './sim-server.ts';

let host: SimHost;
beforeAll(async () => {
  host = await SimHost.create();
});
afterAll(() => host[Symbol.asyncDispose]());

const input = await sharp({ create: { width: 120, height: 70, channels: 3, background: '#336699' } })
  .png()
  .toBuffer();

describe('generations', () => {
  test('the newest shape, with the size that was asked for and pixels floored to 16', async () => {
    await using server = await SimServer.omni(host);
    const reply = await server.generate({ size: '100x72', model: 'org/model', extra_body: { n: 3 }, colour: 'red' });
    expect(reply.status).toBe(200);
    expect(reply.keys()).toEqual(['created', 'data', 'output_format', 'size', 'cot_output', 'metrics']);
    expect(reply.json).toMatchObject({
      data: [{ url: null, revised_prompt: null }],
      output_format: 'png',
      size: '100x72',
      cot_output: null,
      metrics: { peak_memory_mb: 20_023 }, // of 20000 to 24000, for 6144 of 1048576 pixels
    });
    expect(reply.at('created')).toBeGreaterThan(1_700_000_000);
    expect(reply.at('metrics.stage_durations.stage_0_gen_ms')).toBeGreaterThan(0);
    expect(reply.text).not.toContain('seed');
    expect(await sharp(imageOf(reply)).metadata()).toMatchObject({ format: 'png', width: 96, height: 64 });

    const again = await server.generate({ size: '100x72' });
    const other = await server.generate({ size: '100x72', seed: 2 });
    expect(imageOf(again)).toEqual(imageOf(reply));
    expect(imageOf(other)).not.toEqual(imageOf(reply));

    const plain = await server.post('/v1/images/generations', { prompt: '' });
    expect(plain.at('size')).toBeNull();
    expect(await sharp(imageOf(plain)).metadata()).toMatchObject({ width: 1024, height: 1024 });

    const several = await server.generate({ n: 2, output_format: 'bmp' });
    expect(several.json).toMatchObject({ output_format: 'jpeg', data: [{}, {}] });
    expect(imageOf(several, 0)).not.toEqual(imageOf(several, 1));
    expect((await sharp(imageOf(several)).metadata()).format).toBe('jpeg');
    const webp = await server.generate({ output_format: 'webp' });
    expect((await sharp(imageOf(webp)).metadata()).format).toBe('webp');

    const file = await server.generate({ response_format: 'file' });
    expect(file.headers).toMatchObject({ 'content-type': 'image/png' });
    expect(file.headers['content-disposition']).toMatch(/^attachment; filename="image_[0-9a-f]{8}\.png"$/);
    expect((await sharp(file.body).metadata()).width).toBe(64);
    const zip = await server.generate({ response_format: 'file', n: 2 });
    expect(zip.headers).toMatchObject({ 'content-type': 'application/zip' });
    expect(zip.body.readUInt32LE(0)).toBe(0x04034b50);
    expect(zip.body.readUInt16LE(zip.body.length - 12)).toBe(2);
  });

  test('--answer-file: its bytes for every prompt and size, as JSON, as a file and as an edit', async () => {
    await using server = await SimServer.omni(host, ['--answer-file', 'tests/agent/model/input.png']);
    const picture = await readFile('tests/agent/model/input.png');
    const first = await server.generate();
    expect(imageOf(first).equals(picture)).toBe(true);
    expect((await server.generate({ prompt: 'another', size: '256x256' })).text).toBe(first.text);
    expect((await server.generate({ response_format: 'file' })).body.equals(picture)).toBe(true);
    expect(imageOf(await server.postForm('/v1/images/edits', { image: input, prompt: 'x' })).equals(picture)).toBe(
      true,
    );
  });

  test('refusals travel in one envelope', async () => {
    await using server = await SimServer.omni(host, ['--served-model-name', 'first', 'second']);
    const cases: [object, string][] = [
      [{ prompt: undefined }, "'loc': ('body', 'prompt'), 'msg': 'Field required'"],
      [{ model: 'second' }, "Model mismatch: request specifies 'second' but server is running 'first'."],
      [{ model: '' }, "Model mismatch: request specifies '' but server"],
      [{ size: '1024x' }, "Invalid size format: '1024x'. Width and height must be integers."],
      [{ size: '8x64' }, 'at least 16'],
      [{ size: '9000x9000' }, 'Requested image size 9000x9000 exceeds the maximum allowed size of 33177600 pixels.'],
      [{ n: 11 }, 'Input should be less than or equal to 10'],
      [{ num_inference_steps: 0 }, 'Input should be greater than or equal to 1'],
      [{ guidance_scale: 20.5 }, 'Input should be less than or equal to 20'],
      [{ seed: 1.5 }, 'Input should be a valid integer'],
      [{ response_format: 'url' }, "'b64_json' or 'file'"],
    ];
    for (const [parameters, text] of cases) {
      const reply = await server.generate(parameters);
      expect(reply).toMatchObject({ status: 400, json: { error: { type: 'Bad Request', param: null, code: 400 } } });
      expect(reply.at('error.message')).toContain(text);
    }
    const headers = { 'content-type': 'text/plain' };
    const unread = await server.post('/v1/images/generations', { prompt: 'x' }, { headers });
    expect(unread.at('error.message')).toContain('application/json');
  });
});

describe('edits', () => {
  test('the picture keeps its size, or takes the asked one', async () => {
    await using server = await SimServer.omni(host);
    const fields = { image: input, prompt: 'make it blue', num_inference_steps: '3', seed: '7', model: 'org/model' };
    const reply = await server.postForm('/v1/images/edits', fields);
    expect(reply.json).toMatchObject({ size: '120x70', output_format: 'png', metrics: null });
    expect(await sharp(imageOf(reply)).metadata()).toMatchObject({ width: 112, height: 64 });
    expect(server.stderr).toContain('| 3/3 [');
    const sized = await server.postForm('/v1/images/edits', { 'image[]': input, prompt: 'x', size: '64x48' });
    expect(await sharp(imageOf(sized)).metadata()).toMatchObject({ width: 64, height: 48 });
    const url = `data:image/png;base64,${input.toString('base64')}`;
    expect((await server.postForm('/v1/images/edits', { url, prompt: 'x' })).status).toBe(200);
  });

  test('refusals: 422 without an image, 400 without a prompt or for another model, 500 for what is no image', async () => {
    await using server = await SimServer.omni(host);
    const status = async (fields: Record<string, string | Buffer>) => {
      const reply = await server.postForm('/v1/images/edits', fields);
      return [reply.at('error.code'), reply.at('error.type'), reply.at('error.message')];
    };
    const missing = "Field 'image' or 'url' is required";
    expect(await status({ prompt: 'x' })).toEqual([422, 'Unprocessable Entity', missing]);
    expect((await status({ image: input }))[0]).toBe(400);
    expect((await status({ image: input, prompt: 'x', model: 'y' }))[2]).toContain('Model mismatch');
    expect((await status({ image: Buffer.from('no picture'), prompt: 'x' }))[2]).toMatch(/^Image edit failed: /);
  });
});

describe('time', () => {
  test('--generate-ms and --step-ms', async () => {
    await using whole = await SimServer.omni(host, ['--generate-ms', '500']);
    await using steps = await SimServer.omni(host, ['--generate-ms', '100', '--step-ms', '40']);
    expect((await whole.generate()).at('metrics.stage_durations.stage_0_gen_ms')).toBeGreaterThanOrEqual(495);
    const stepped = await steps.generate({ num_inference_steps: 10 });
    expect(stepped.at('metrics.stage_durations.stage_0_gen_ms')).toBeGreaterThanOrEqual(495);
  });

  test('a bar on stderr tells every step, separated by carriage returns; --no-progress-bar tells none', async () => {
    await using server = await SimServer.omni(host, ['--step-ms', '60']);
    await server.generate({ num_inference_steps: 4 });
    expect(server.stderr).toMatch(/\r {2}0%\| {10}\| 0\/4 \[00:00<\?, \?it\/s\]/);
    expect(server.stderr).toMatch(/\r 50%\|█████ {5}\| 2\/4 \[00:00<00:00, [ \d.]+it\/s\]/);
    expect(server.stderr).toMatch(/\r100%\|█{10}\| 4\/4 \[[^\r]*\n/);
    await using silent = await SimServer.omni(host, ['--no-progress-bar']);
    await silent.generate();
    expect(silent.stderr).toContain('Application startup complete');
    expect(silent.stderr).not.toContain('it/s');
  });
});

describe('one at a time', () => {
  test('requests wait in their order, however many; a queued one drops when its client leaves', async () => {
    await using server = await SimServer.omni(host, ['--generate-ms', '700', '--log-stats']);
    const leaving = new AbortController();
    const order: string[] = [];
    const done = (name: string) => () => order.push(name);
    const first = server.generate().then(done('first'));
    const waiting = async (text: string) => (await server.get('/metrics')).text.includes(text);
    await eventually('one runs', () => waiting('requests_running{model_name="org/model"} 1.0'));
    const dropped = server.generate({}, leaving.signal).catch(() => undefined);
    await eventually('one waits', () => waiting('requests_waiting{model_name="org/model"} 1.0'));
    const third = server.generate().then(done('third'));
    leaving.abort();
    await Promise.all([first, dropped, third]);
    expect(order).toEqual(['first', 'third']);
    expect(await waiting('requests_success_total{finished_reason="stop",model_name="org/model"} 2.0')).toBe(true);
  });

  test.each(['generation', 'edit'])('a client that leaves does not stop a running %s', async (work) => {
    await using server = await SimServer.omni(host, ['--generate-ms', '400', '--log-stats']);
    const leaving = new AbortController();
    const running =
      work === 'edit'
        ? server.postForm('/v1/images/edits', { image: input, prompt: 'x' }, leaving.signal)
        : server.generate({}, leaving.signal);
    const startedMs = performance.now();
    await eventually('it runs', async () =>
      (await server.get('/metrics')).text.includes('running{model_name="org/model"} 1.0'),
    );
    leaving.abort();
    await expect(running).rejects.toThrow();
    await server.generate();
    expect(performance.now() - startedMs).toBeGreaterThan(750);
  });

  test('--step-execution stops a running generation at its next step, and no edit', async () => {
    const args = ['--step-execution', '--generate-ms', '0', '--step-ms', '300', '--log-stats'];
    await using server = await SimServer.omni(host, args);
    const leave = async (work: (signal: AbortSignal) => Promise<unknown>, at: string) => {
      const leaving = new AbortController();
      const abandoned = work(leaving.signal);
      abandoned.catch(() => undefined); // looked at below
      await server.says(at);
      leaving.abort();
      await expect(abandoned).rejects.toThrow();
    };
    await leave((signal) => server.generate({ num_inference_steps: 60 }, signal), '1/60 [');
    const startedMs = performance.now();
    expect((await server.generate({ num_inference_steps: 1 })).status).toBe(200);
    expect(performance.now() - startedMs, 'the rest of 60 steps was not made').toBeLessThan(15_000);
    expect(server.stderr).not.toContain('60/60 [');
    const edit = { image: input, prompt: 'x', num_inference_steps: '3' };
    await leave((signal) => server.postForm('/v1/images/edits', edit, signal), '1/3 [');
    await server.says('3/3 [');
  });

  test('an edit does not notice that its client left while it waited', async () => {
    await using server = await SimServer.omni(host, ['--generate-ms', '3000', '--log-stats']);
    const leaving = new AbortController();
    const first = server.generate();
    const queued = server.postForm('/v1/images/edits', { image: input, prompt: 'x' }, leaving.signal);
    const counts = async (text: string) => (await server.get('/metrics')).text.includes(text);
    await eventually('one waits', () => counts('requests_waiting{model_name="org/model"} 1.0'));
    leaving.abort();
    await expect(queued).rejects.toThrow();
    await first;
    await eventually('both were worked on', () => counts('stop",model_name="org/model"} 2.0'));
  });
});
