import { execa } from 'execa';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { eventually, freePort, isOpenAfter, SimHost, SimServer } from './sim-server.ts';

describe('command line', () => {
  test.each([
    ['an unknown option', ['serve', 'm', '--omni', '--colour', 'red'], 'unrecognized arguments: --colour'],
    ['a value that is no number', ['serve', 'm', '--port', 'http'], "argument --port: invalid int value: 'http'"],
    ['an unknown choice', ['serve', 'm', '--asleep', 'nap'], "argument --asleep: invalid choice: 'nap'"],
    ['no model', ['serve', '--omni'], '--omni needs a model'],
    [
      '--reject-flag NAME, where that one is given',
      ['serve', 'm', '--vae-use-tiling', '--reject-flag', 'vae-use-tiling'],
      'unrecognized arguments: --vae-use-tiling',
    ],
    ['--reject-flag with no such flag', ['serve', 'm', '--reject-flag', 'colour'], 'no flag is named colour'],
  ])('%s: usage on stderr, exit code 2', async (_, args, text) => {
    const result = await execa('dist/sim/vllm-omni', args, { reject: false });
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toMatch(/^usage: vllm serve/);
    expect(result.stderr).toContain(text);
  });

  test('real options are taken, with dashes or underscores', async () => {
    await using host = await SimHost.create();
    const real = ['--vae-use-tiling', '--stage-init-timeout', '900', '--init_timeout=1800', '--dtype', 'bfloat16'];
    const other = ['--enforce-eager', '--max-num-seqs', '1', '--reject-flag', 'vae-use-slicing'];
    await using server = await SimServer.omni(host, [...real, ...other]);
    expect((await server.get('/health')).status).toBe(200);
  });

  test('--num-gpus spreads the memory over the visible GPUs, in their order', async () => {
    await using host = await SimHost.create();
    await using _two = await SimServer.omni(host, ['--tensor-parallel-size', '2']);
    await using _one = await SimServer.omni(host, [], { CUDA_VISIBLE_DEVICES: 'GPU-two' });
    expect([host.usedMiB('GPU-one'), host.usedMiB('GPU-two')]).toEqual([10_000, 30_000]);
  });

  test('CUDA_VISIBLE_DEVICES: MIG instances and UUIDs cut short are found, and what is no GPU ends the start', async () => {
    const whole = { uuid: 'GPU-8932f937-d72c', index: 0, name: 'Simulated GPU', totalMiB: 80_000 };
    const instance = { index: 0, gpuInstance: 1, computeInstance: 0, profile: '3g.40gb', totalMiB: 40_000 };
    const mig = ['MIG-5b2c1a-11', 'MIG-5b2c1a-12'].map((uuid, index) => ({ ...instance, uuid, index }));
    await using host = await SimHost.create([whole, { ...whole, uuid: 'GPU-77aa', index: 1, mig }]);
    await using _mig = await SimServer.omni(host, [], { CUDA_VISIBLE_DEVICES: 'MIG-5b2c1a-12' });
    await using _short = await SimServer.omni(host, [], { CUDA_VISIBLE_DEVICES: 'GPU-8932' });
    const used = [whole.uuid, 'GPU-77aa', 'MIG-5b2c1a-11', 'MIG-5b2c1a-12'].map((uuid) => host.usedMiB(uuid));
    expect(used).toEqual([20_000, 0, 0, 20_000]);
    for (const CUDA_VISIBLE_DEVICES of ['GPU-nowhere', '', '7,0']) {
      await using server = await SimServer.spawnOmni(host, [], { CUDA_VISIBLE_DEVICES });
      expect(await server.exited).toEqual([1, null]);
      expect(server.stderr).toContain('RuntimeError: No CUDA GPUs are available');
    }
    const two = ['--tensor-parallel-size', '2'];
    await using lacking = await SimServer.spawnOmni(host, two, { CUDA_VISIBLE_DEVICES: '0' });
    expect(await lacking.exited).toEqual([1, null]);
    expect(lacking.stderr).toContain('invalid device ordinal');
  });
});

describe('start', () => {
  test('--load-ms: until then the port is taken and connections are refused, and the memory grows', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.spawnOmni(host, ['--load-ms', '1000']);
    await eventually('the memory grows', () => host.usedMiB() > 0 && host.usedMiB() < 20_000);
    await expect(server.get('/health')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await server.ready();
    expect(performance.now() - server.startedMs).toBeGreaterThan(1_000);
    expect(host.usedMiB()).toBe(20_000);
    await using rival = await SimServer.spawnOmni(host, ['--load-ms', '5000'], {}, server.port);
    expect(await rival.exited).toEqual([1, null]);
    expect(rival.stderr).toContain('Address already in use');
  });

  test('the log tells the start as the original does; --no-logs is silent', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host);
    for (const text of [
      'Detected diffusion model: org/model',
      'Launching Orchestrator thread with 1 stages',
      'Worker 0: Initialized device and distributed environment.',
      'Loading weights took 0.02 seconds',
      'Model loading took 19.5 GiB and 0.02 seconds',
      'dummy run to warm up the model',
      'Worker 0: Scheduler loop started.',
      `Starting vLLM API server (pure diffusion mode) on http://127.0.0.1:${server.port}`,
      'Route: /v1/images/generations, Methods: POST',
      'Application startup complete.',
    ]) {
      expect(server.stderr).toContain(text);
    }
    expect(server.stderr).toContain(`(APIServer pid=${server.pid}) INFO `);
    await using silent = await SimServer.omni(host, ['--no-logs', '--no-progress-bar']);
    await silent.generate();
    expect(silent.stderr).toBe('');
  });

  test('--hang-after-startup says that it is complete and never answers', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.spawnOmni(host, ['--hang-after-startup']);
    await eventually('it says so', () => server.stderr.includes('Application startup complete'));
    const health = server.get('/health');
    expect(await isOpenAfter(health, 300)).toBe(true);
    server.child.kill('SIGKILL');
    await expect(health).rejects.toThrow();
  });

  test.each([
    ['--oom-at-load', ['--oom-at-load'], 0],
    ['weights that do not fit', [], 70_000],
  ])('%s: the texts of a dead scheduler and an exit code', async (_, args, foreignMiB) => {
    await using host = await SimHost.create();
    host.plant(foreignMiB);
    await using server = await SimServer.spawnOmni(host, args);
    expect(await server.exited).toEqual([1, null]);
    for (const text of ['torch.OutOfMemoryError: CUDA out of memory', 'Rank 0 scheduler is dead', 'EOFError']) {
      expect(server.stderr).toContain(text);
    }
    expect(host.usedMiB()).toBe(foreignMiB);
  });

  test('a listening stranger on the port ends it at once', async () => {
    await using host = await SimHost.create();
    const port = await freePort();
    const stranger = createServer().listen(port, '127.0.0.1');
    await once(stranger, 'listening');
    await using server = await SimServer.spawnOmni(host, ['--load-ms', '60000'], {}, port);
    expect(await server.exited).toEqual([1, null]);
    stranger.close();
    await once(stranger, 'close');
  });
});

describe('endpoints', () => {
  test('health, version, models, 404 and 405', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, [
      '--served-model-name',
      'first',
      'second',
      '--vllm-version',
      '0.27.1',
    ]);
    expect((await server.get('/health')).json).toEqual({ status: 'healthy' });
    expect((await server.get('/version')).json).toEqual({ version: '0.27.1' });
    const models = await server.get('/v1/models');
    expect(models.at('data')).toMatchObject([
      { id: 'first', root: 'org/model' },
      { id: 'second', root: 'org/model' },
    ]);
    const missing = { message: 'Not Found', type: 'Not Found', param: null, code: 404 };
    expect(await server.get('/nowhere')).toMatchObject({ status: 404, json: { error: missing } });
    expect((await server.get('/v1/omni/sleep')).status).toBe(405);
  });

  test('/metrics has our series with --log-stats only', async () => {
    await using host = await SimHost.create();
    await using silent = await SimServer.omni(host);
    expect((await silent.get('/metrics')).text).not.toContain('vllm_omni');
    await using server = await SimServer.omni(host, ['--log-stats']);
    await server.generate();
    const { text } = await server.get('/metrics');
    expect(text).toContain('vllm_omni:num_requests_running{model_name="org/model"} 0.0');
    expect(text).toContain('vllm_omni:requests_success_total{finished_reason="stop",model_name="org/model"} 1.0');
  });

  test('VLLM_API_KEY guards /v1 and nothing else', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, [], { VLLM_API_KEY: 'k' });
    expect(await server.get('/v1/models')).toMatchObject({ status: 401, json: { error: 'Unauthorized' } });
    expect((await server.get('/v1/models', { authorization: 'Bearer k' })).status).toBe(200);
    expect((await server.get('/version')).status).toBe(200);
  });
});
