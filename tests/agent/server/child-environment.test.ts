import { expect, test } from 'vitest';
import { childEnvironment, programEnvironment } from '../../../agent/server/child-environment.ts';

const OURS = {
  ...{ PATH: '/usr/bin', HOME: '/var/lib/gantry', LANG: 'C.UTF-8', HF_TOKEN: 'hf_abc', CUDA_HOME: '/cuda' },
  ...{ HTTPS_PROXY: 'http://proxy:3128', XDG_RUNTIME_DIR: '/run/user/1000', DOCKER_HOST: 'unix:///d.sock' },
  // What must not reach a server: systemd's own, and ours.
  ...{ NOTIFY_SOCKET: '/run/systemd/notify', WATCHDOG_USEC: '1', WATCHDOG_PID: '1', LISTEN_FDS: '1', LISTEN_PID: '1' },
  ...{ CREDENTIALS_DIRECTORY: '/run/credentials', GANTRY_TOKEN: 'secret', VLLM_API_KEY: 'secret', NODE_OPTIONS: '-x' },
  ...{ INVOCATION_ID: 'x', JOURNAL_STREAM: 'x', SSH_AUTH_SOCK: '/ssh', AWS_SECRET_ACCESS_KEY: 'secret' },
};

test('a server inherits what is allowed by name, and nothing else', () => {
  const env = childEnvironment({ gpus: ['GPU-a'], engine: {}, model: {}, ours: OURS });
  expect(Object.keys(env).sort()).toEqual(
    [
      ...['CUDA_DEVICE_ORDER', 'CUDA_HOME', 'CUDA_VISIBLE_DEVICES', 'HF_TOKEN', 'HOME', 'HTTPS_PROXY', 'LANG', 'PATH'],
      'PYTHONUNBUFFERED',
    ].sort(),
  );
});

test('a program that starts somebody else’s server finds its daemons, and gets no token', () => {
  const env = programEnvironment(OURS);
  expect(env).toMatchObject({ XDG_RUNTIME_DIR: '/run/user/1000', DOCKER_HOST: 'unix:///d.sock', PATH: '/usr/bin' });
  expect(Object.values(env)).not.toContain('secret');
  expect(env).not.toHaveProperty('NOTIFY_SOCKET');
  expect(env).not.toHaveProperty('HF_TOKEN');
});

test('caches lie in the directory that systemd gave us, unless the host says where', () => {
  const ours = { CACHE_DIRECTORY: '/var/cache/gantry', HF_HOME: '/data/hf' };
  const env = childEnvironment({ gpus: [], engine: {}, model: {}, ours });
  expect(env).toMatchObject({
    HF_HOME: '/data/hf',
    XDG_CACHE_HOME: '/var/cache/gantry',
    VLLM_CACHE_ROOT: '/var/cache/gantry/vllm',
    TRITON_CACHE_DIR: '/var/cache/gantry/triton',
    TORCHINDUCTOR_CACHE_DIR: '/var/cache/gantry/inductor',
  });
});

test('the model’s own settings win over those of the engine and the weights, but never the choice of the GPUs', () => {
  const env = childEnvironment({
    gpus: ['GPU-a', 'MIG-b'],
    engine: { PORT: '1', A: 'engine' },
    weights: { HF_HUB_OFFLINE: '1', A: 'weights' },
    model: { A: 'model', CUDA_VISIBLE_DEVICES: '7', CUDA_DEVICE_ORDER: 'FASTEST_FIRST' },
    ours: {},
  });
  expect(env).toMatchObject({ PORT: '1', A: 'model', HF_HUB_OFFLINE: '1' });
  expect(env).toMatchObject({ CUDA_VISIBLE_DEVICES: 'GPU-a,MIG-b', CUDA_DEVICE_ORDER: 'PCI_BUS_ID' });
});
