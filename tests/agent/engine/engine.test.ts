import { describe, expect, test } from 'vitest';
import { OutOfStep, engineError, errorText, isOutOfMemory } from '../../../agent/engine/engine.ts';
import { step1xEdit } from '../../../agent/engine/step1x-edit.ts';
import { vllmOmni } from '../../../agent/engine/vllm-omni.ts';
import { childEnvironment } from '../../../agent/server/child-environment.ts';
import { omni, step1x } from '../model/model-host.ts';

describe('an error answer', () => {
  const ROWS: [body: string, says: string][] = [
    ['{"error":{"message":"Not Found","type":"Not Found","param":null,"code":404}}', 'Not Found'],
    ['{"error":"Unauthorized"}', 'Unauthorized'],
    ['{"detail":"cannot identify image file"}', 'cannot identify image file'],
    ['{"detail":[{"loc":["body","prompt"],"msg":"Field required","type":"missing"}]}', 'body.prompt: Field required'],
    ['Internal Server Error', 'Internal Server Error'],
    ['', 'no explanation'],
    ['{"odd":1}', '{"odd":1}'],
  ];
  test.each(ROWS)('%s says %s', (body, says) => {
    expect(errorText(body)).toBe(says);
  });

  const CODES: [status: number, message: string, code: string][] = [
    [400, "Invalid size format: '1024x'.", 'INVALID_ARGUMENT'],
    [422, "Field 'image' or 'url' is required", 'INVALID_ARGUMENT'],
    [400, "Model mismatch: request specifies 'X' but server is running 'Y'.", 'MODEL_FAILED'],
    [500, 'Image generation failed: CUDA out of memory. Tried to allocate 2.00 GiB.', 'GPU_OUT_OF_MEMORY'],
    [500, 'CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate', 'GPU_OUT_OF_MEMORY'],
    [500, "'latin-1' codec can't encode characters in position 0-1", 'ENGINE_FAILED'],
    [500, 'EngineCore encountered an issue.', 'ENGINE_FAILED'],
    [503, 'No diffusion stage found', 'ENGINE_FAILED'],
  ];
  test.each(CODES)('%s %s is %s', (status, message, code) => {
    const body = Buffer.from(JSON.stringify({ error: { message } }));
    expect(engineError({ status, type: 'application/json', body }).code).toBe(code);
  });

  const REMEDIES: [message: string, remedy: string | undefined][] = [
    ["Model mismatch: request specifies 'X' but server is running 'Y'.", 'refresh'],
    ['Image generation failed: Generation rejected: Engine is partially or fully asleep.', 'wake'],
    ['CUDA error: an illegal memory access was encountered', 'end'],
    ['CUDA error: out of memory', undefined], // it survives that
    ['EngineCore encountered an issue.', undefined],
  ];
  test.each(REMEDIES)('%s is mended by: %s', (message, remedy) => {
    const body = Buffer.from(JSON.stringify({ error: { message } }));
    const error = engineError({ status: 500, type: 'application/json', body });
    expect(error instanceof OutOfStep ? error.remedy : undefined).toBe(remedy);
  });

  test.each([
    ['a room with a view', false],
    ['zoom', false],
    ['worker OOM-killed', true],
    ['CUDA error: an illegal memory access', true],
  ])('%s is out of memory: %s', (text, is) => {
    expect(isOutOfMemory(text)).toBe(is);
  });
});

describe('the command line', () => {
  const argvOf = (model: ReturnType<typeof omni>): string[] => vllmOmni().command({ model, port: 9000 }).argv.slice(2);

  test('of vLLM-Omni binds to loopback and serves one name', () => {
    const model = omni('a', [], { id: 'Qwen/Qwen-Image@0123abc' });
    const args = argvOf({
      ...model,
      launch: { kind: 'owned', command: ['vllm', 'serve'], args: ['--vae-use-tiling'], env: {}, download: 'none' },
    });
    expect(args).toEqual([
      'Qwen/Qwen-Image',
      '--omni',
      ...['--host', '127.0.0.1', '--port', '9000', '--served-model-name', 'Qwen/Qwen-Image@0123abc'],
      ...['--revision', '0123abc', '--enable-sleep-mode', '--log-stats', '--vae-use-tiling'],
    ]);
  });

  test('of vLLM-Omni spreads over GPUs unless the configuration does', () => {
    expect(argvOf(omni('a', [], { gpuCount: 2 })).join(' ')).toContain('--tensor-parallel-size 2');
    expect(argvOf(omni('a', ['--usp', '2'], { gpuCount: 2 }))).not.toContain('--tensor-parallel-size');
    expect(argvOf(omni('a', [], { offload: 'none' }))).not.toContain('--enable-sleep-mode');
    expect(argvOf(omni('a', [], { id: '/srv/user@host/model' }))[0]).toBe('/srv/user@host/model');
  });

  test.each([
    ['of several stages, by its flags', omni('a', ['--stage-0-devices', '0'])],
    ['of several stages, by its name', omni('a', [], { id: 'zai-org/GLM-Image@0123abc' })],
  ])('of a model %s never asks for sleep', (_, model) => {
    expect(argvOf(model)).not.toContain('--enable-sleep-mode');
    expect(vllmOmni().whyNotOffload(model)).toContain('several stages');
    expect(vllmOmni().whyNotOffload(omni('a'))).toBeUndefined();
  });

  test('of Step1X-Edit is its environment', () => {
    const { argv, env } = step1xEdit().command({ model: step1x(), port: 9000 });
    expect(argv[0]).toMatch(/step1x-edit$/);
    expect(env).toMatchObject({ HOST: '127.0.0.1', PORT: '9000', NVIDIA_VISIBLE_DEVICES: '0' });
  });
});

test('a server sees the GPUs it was given and nothing of ours but what it needs', () => {
  const env = childEnvironment({ gpus: ['GPU-a', 'GPU-b'], engine: { PORT: '1' }, model: { PORT: '2', MY: 'own' } });
  expect(env).toMatchObject({
    CUDA_VISIBLE_DEVICES: 'GPU-a,GPU-b',
    CUDA_DEVICE_ORDER: 'PCI_BUS_ID',
    PYTHONUNBUFFERED: '1',
    PORT: '2',
    MY: 'own',
  });
  expect(Object.keys(env).filter((name) => /VITEST|npm_|NODE|GANTRY/.test(name))).toEqual([]);
});
