import { execa } from 'execa';
import { readFileSync } from 'node:fs';
import sharp from 'sharp';
import { describe, expect, test } from 'vitest';
import { entryOf, eventually, isOpenAfter, kill, SimHost, SimServer } from './sim-server.ts';

const file = await sharp({ create: { width: 150, height: 90, channels: 3, background: '#996633' } })
  .png()
  .toBuffer();
const edit = (server: SimServer, fields: Record<string, string> = {}, signal?: AbortSignal) =>
  server.postForm('/api/edit', { file, prompt: 'make it snow', ...fields }, signal);

describe('unified_server.py', () => {
  test('the first edit loads, every edit ends on the CPU, and the picture keeps its size', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--residual-mib', '700']);
    const status = async () => (await server.get('/api/gpu/status')).json;
    expect((await server.get('/api/gpu/status')).keys()).toEqual([
      'model_location',
      'idle_time',
      'gpu_memory_allocated_gb',
      'gpu_memory_reserved_gb',
      'statistics',
    ]);
    expect([await status(), host.usedMiB()]).toMatchObject([{ model_location: 'Unloaded' }, 0]);
    // No range is checked: far too many steps, and a size nobody offers.
    const reply = await edit(server, { num_steps: '999', size_level: '7', guidance_scale: '99', seed: '5' });
    expect(reply).toMatchObject({ status: 200, headers: { 'content-type': 'image/png', 'x-prompt': 'make it snow' } });
    expect(Number(reply.headers['x-processing-time'])).toBeGreaterThan(0.05);
    expect(await sharp(reply.body).metadata()).toMatchObject({ width: 150, height: 90 });
    await edit(server);
    const statistics = { total_loads: 1, gpu_to_cpu: 2, cpu_to_gpu: 1, full_releases: 0 };
    expect([await status(), host.usedMiB()]).toMatchObject([{ model_location: 'CPU', statistics }, 700]);
    const offloaded = await server.post('/api/gpu/offload', {});
    expect(offloaded.json).toMatchObject({ success: true, message: 'GPU offloaded. Model now on CPU' });
    expect(offloaded.keys('gpu_status')).toHaveLength(7);
    const released = (await server.post('/api/gpu/release', {})).json;
    expect(released).toMatchObject({ message: 'GPU fully released', gpu_status: { model_location: 'Unloaded' } });
    expect(host.usedMiB()).toBe(700);
    expect((await server.get('/')).headers['content-type']).toContain('text/html');
    expect(server.stderr).toContain('| 28/28 [');
  });

  test('422, 500 and 404 have FastAPI’s own bodies', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host);
    expect(await server.postForm('/api/edit', { file })).toMatchObject({
      status: 422,
      json: { detail: [{ type: 'missing', loc: ['body', 'prompt'], msg: 'Field required' }] },
    });
    expect((await edit(server, { num_steps: 'many' })).at('detail.0')).toMatchObject({ type: 'int_parsing' });
    const broken = await server.postForm('/api/edit', { file: Buffer.from('no picture'), prompt: 'x' });
    expect(broken.status).toBe(500);
    expect(broken.at('detail')).toMatch(/^cannot identify image file <_io.BytesIO/);
    expect(await server.get('/gpu/status')).toMatchObject({ status: 404, json: { detail: 'Not Found' } });
  });

  test('a prompt outside latin-1 is a 500 after the whole edit, unless --no-prompt-header', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--generate-ms', '300']);
    const startedMs = performance.now();
    const reply = await edit(server, { prompt: 'ein “Schloß”' });
    expect(performance.now() - startedMs).toBeGreaterThan(300);
    expect([reply.status, reply.at('detail')]).toEqual([500, expect.stringContaining("'latin-1' codec can't encode")]);
    expect((await edit(server, { prompt: 'Schloß' })).status).toBe(200);
    await using fixed = await SimServer.step1x(host, ['--no-prompt-header']);
    const answer = await edit(fixed, { prompt: '灯台' });
    expect([answer.status, answer.headers['x-prompt']]).toEqual([200, undefined]);
  });

  test('nothing is answered during a load or an edit, unless --async-health', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--load-ms', '400', '--generate-ms', '900']);
    await using patched = await SimServer.step1x(host, ['--load-ms', '400', '--generate-ms', '900', '--async-health'], {
      CUDA_VISIBLE_DEVICES: 'GPU-two',
    });
    const works = [edit(server), edit(patched)];
    await eventually('both load', () => host.usedMiB() > 0 && host.usedMiB('GPU-two') > 0);
    const health = server.get('/health');
    expect((await patched.get('/health')).status).toBe(200);
    expect(await isOpenAfter(health, 300)).toBe(true);
    await Promise.all(works);
    expect((await health).status).toBe(200);
  });

  test('memory: weights during the load, the peak of the working size in an edit; what does not fit is a 500', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--generate-ms', '300']);
    const work = edit(server);
    await eventually('it is at its peak', () => host.usedMiB() === 40_000);
    await work;
    const small = edit(server, { size_level: '512' });
    await eventually('a quarter of the pixels needs a quarter on top', () => host.usedMiB() === 32_500);
    await small;
    host.plant(60_000);
    const reply = await edit(server);
    expect([reply.status, reply.at('detail')]).toEqual([500, expect.stringContaining('CUDA out of memory')]);
    expect(host.usedMiB()).toBe(60_600);
  });
});

describe('defects on demand', () => {
  test('--broken-head: every edit is a 500', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--broken-head']);
    const detail = "cannot access local variable 'torch' where it is not associated with a value";
    expect(await edit(server)).toMatchObject({ status: 500, json: { detail } });
    expect(await edit(server)).toMatchObject({ status: 500, json: { detail } });
  });

  test('--missing-weights: a TypeError at the first edit', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--missing-weights']);
    expect((await edit(server)).at('detail')).toContain('NoneType');
  });

  test('--offload noop says CPU and keeps the memory', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--offload', 'noop']);
    await edit(server);
    expect((await server.get('/api/gpu/status')).at('model_location')).toBe('CPU');
    expect(host.usedMiB()).toBe(30_000);
  });

  test('--release lazy keeps the memory until the next call', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--offload', 'noop', '--release', 'lazy']);
    await edit(server);
    await server.post('/api/gpu/release', {});
    expect(host.usedMiB()).toBe(30_000);
    await server.post('/api/gpu/offload', {});
    expect(host.usedMiB()).toBe(600);
    await edit(server);
    await using real = await SimServer.step1x(host, ['--offload', 'noop'], { CUDA_VISIBLE_DEVICES: 'GPU-two' });
    await edit(real);
    await real.post('/api/gpu/release', {});
    expect(host.usedMiB('GPU-two')).toBe(600);
  });

  test('--idle-timeout-ms: the monitor takes the weights from a longer edit', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--generate-ms', '400', '--idle-timeout-ms', '100']);
    const reply = await edit(server);
    expect([reply.status, reply.at('detail')]).toEqual([500, expect.stringContaining('same device')]);
    expect((await server.get('/api/gpu/status')).at('model_location')).toBe('CPU');
  });

  test('an unknown option: usage, exit code 2', async () => {
    const result = await execa('dist/sim/step1x-edit', ['--colour'], { reject: false });
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toContain('unrecognized arguments: --colour');
  });
});

describe('api.py', () => {
  test('--server api has other paths and answers in JSON', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.step1x(host, ['--server', 'api']);
    expect((await server.get('/')).at('name')).toBe('Step1X-Edit API');
    expect((await server.get('/health')).json).toMatchObject({ cuda_available: true, manager_initialized: true });
    expect((await server.get('/api/gpu/status')).status).toBe(404);
    expect((await server.get('/gpu/status')).keys()).toHaveLength(7);
    const reply = await edit(server, { num_steps: '10', size_level: '512', prompt: '灯台' });
    expect(reply.json).toMatchObject({ success: true, message: 'Image edited successfully' });
    expect(reply.at('metadata')).toEqual({
      prompt: '灯台',
      num_steps: 10,
      guidance_scale: 6,
      size_level: 512,
      seed: null,
      gpu_location: 'CPU',
    });
    const picture = await sharp(Buffer.from(String(reply.at('image_base64')), 'base64')).metadata();
    expect(picture).toMatchObject({ width: 150, height: 90 });
    const stream = await server.postForm('/api/edit-file', { file, prompt: 'x' });
    expect(stream.headers['content-disposition']).toBe('attachment; filename=edited_input.png');
    expect((await server.post('/gpu/offload', {})).at('message')).toMatch(
      /^GPU offloaded. Model now on CPU, GPU memory: /,
    );
    expect((await server.post('/gpu/release', {})).at('message')).toMatch(/^GPU released. Model location: Unloaded/);
  });
});

describe('the flags of both simulators', () => {
  test('--garbage, --truncate, --exit-after and --fork', async () => {
    await using host = await SimHost.create();
    const args = ['--garbage', '1', '--truncate', '2', '--exit-after', '3', '--fork'];
    await using server = await SimServer.step1x(host, args);
    const picture = async () => sharp((await edit(server)).body);
    await expect((await picture()).metadata()).rejects.toThrow();
    await expect((await picture()).raw().toBuffer()).rejects.toThrow();
    expect(host.ledger.entries().map(({ pid }) => pid)).not.toContain(server.pid);
    expect((await edit(server)).status).toBe(200);
    expect(await server.exited).toEqual([1, null]);
  });

  test('--crash-on, --ignore-sigterm, --log-flood and --retitle', async () => {
    await using host = await SimHost.create();
    const args = ['--crash-on', 'dragon', '--exit-code', '4', '--ignore-sigterm', '--log-flood', '5', '--retitle'];
    await using server = await SimServer.step1x(host, args);
    await edit(server);
    expect(readFileSync(`/proc/${entryOf(host).pid}/cmdline`, 'utf8').replaceAll('\0', '')).toBe('python3');
    await eventually('megabytes of log', () => server.stderr.length > 2_000_000);
    server.child.kill('SIGTERM');
    await expect(edit(server, { prompt: 'a dragon' })).rejects.toThrow();
    expect(await server.exited).toEqual([4, null]);
  });

  test('a killed worker is the end of the server, unless --worker-death-unnoticed: then edits hang', async () => {
    await using host = await SimHost.create();
    await using mortal = await SimServer.step1x(host, ['--fork']);
    await edit(mortal);
    kill(entryOf(host).pid);
    expect(await mortal.exited).toEqual([1, null]);
    await using server = await SimServer.step1x(host, ['--worker-death-unnoticed', '--async-health']);
    await edit(server);
    kill(entryOf(host).pid);
    const leaving = new AbortController();
    const hanging = edit(server, {}, leaving.signal);
    expect(await isOpenAfter(hanging, 400)).toBe(true);
    expect((await server.get('/health')).status).toBe(200);
    leaving.abort();
    await expect(hanging).rejects.toThrow();
  });
});
