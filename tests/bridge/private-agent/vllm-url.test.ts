import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { AgentFile } from '../../../agent/config-schema.ts';
import { agentFile } from '../../../bridge/private-agent/agent-file.ts';
import { privateHosts } from '../../../bridge/private-agent/private-hosts.ts';
import { hostNameOf, parseVllmUrl } from '../../../bridge/private-agent/vllm-url.ts';
import { createLog } from '../../../shared/log.ts';

const OWN = ['laptop', '192.168.1.7', 'fe80::1'];

describe('a URL that means the same is the same', () => {
  test.each([
    ['http://gpu-box:8000', 'http://gpu-box:8000'],
    ['HTTP://GPU-Box:8000/', 'http://gpu-box:8000'],
    [' http://gpu-box:8000/v1/ ', 'http://gpu-box:8000'],
    ['http://gpu-box:80', 'http://gpu-box'],
    ['https://gpu.example:443/v1', 'https://gpu.example'],
    ['https://proxy.example/images/v1', 'https://proxy.example/images'],
    ['http://[::1]:8000', 'http://[::1]:8000'],
    ['http://127.1:8000', 'http://127.0.0.1:8000'],
  ])('%s', (text, url) => {
    expect(parseVllmUrl(text, OWN)).toMatchObject({ url });
  });
});

describe('refused is', () => {
  test.each([
    ['gpu-box:8000', /is no URL/],
    ['ws://gpu-box:8000', /is no URL/],
    ['', /is no URL/],
    ['http://me:secret@gpu-box:8000', /sends no keys/],
    ['http://gpu-box:8000/?a=b', /behind the path/],
    ['http://gpu-box:8000/#a', /behind the path/],
  ])('%s', (text, problem) => {
    expect(parseVllmUrl(text, OWN)).toMatch(problem);
  });

  test('a secret is not repeated', () => {
    expect(parseVllmUrl('http://me:secret@gpu-box:8000', OWN)).not.toMatch(/secret/);
  });
});

describe('on this machine is', () => {
  test.each([
    ['http://127.0.0.1:8000', true],
    ['http://127.3.2.1:8000', true],
    ['http://localhost:8000', true],
    ['http://[::1]:8000', true],
    ['http://[fe80::1]:8000', true],
    ['http://192.168.1.7:8000', true],
    ['http://Laptop:8000', true],
    ['http://192.168.1.8:8000', false],
    ['http://gpu-box:8000', false],
    ['http://127.example.com:8000', false],
  ])('%s: %s', (text, isHere) => {
    expect(parseVllmUrl(text, OWN)).toMatchObject({ isHere });
  });
});

test('names are short, of letters that a host may have, and no two are the same', () => {
  expect(hostNameOf('http://gpu-box:8000', new Set())).toBe('vllm-gpu-box-8000');
  expect(hostNameOf('https://gpu.example', new Set())).toBe('vllm-gpu.example-443');
  expect(hostNameOf('http://[::1]:8000', new Set())).toMatch(/^vllm-[A-Za-z0-9.-]+$/);
  expect(hostNameOf(`http://${'x'.repeat(200)}:1`, new Set()).length).toBeLessThanOrEqual(50);
  const taken = new Set(['vllm-gpu-box-8000', 'vllm-gpu-box-8000-2']);
  expect(hostNameOf('http://gpu-box:8000', taken)).toBe('vllm-gpu-box-8000-3');
});

describe('the configuration that is written', () => {
  const settings = { url: 'http://gpu-box:8000', isHere: false, timeoutMs: 300_000 };

  test('is one that the agent takes, on loopback and with no fixed port', () => {
    const { listen, models, times, gpu } = AgentFile.parse(JSON.parse(agentFile(settings)));
    expect(listen).toEqual({ host: '127.0.0.1', port: 0 });
    expect(models).toEqual({ 'vllm-gpu-box-8000': { engine: 'vllm-omni', attach: 'http://gpu-box:8000' } });
    expect(times.job_limit).toBe(300_000);
    expect(gpu.nvidia_smi).toBe('none');
  });

  test('asks for the GPUs of this machine only where the server is on it', () => {
    const { gpu } = AgentFile.parse(JSON.parse(agentFile({ ...settings, isHere: true })));
    expect(gpu.nvidia_smi).toBe('nvidia-smi');
  });
});

test('nothing is written or started before somebody wants to link', () => {
  const stateDir = join(tmpdir(), `gantry-untouched-${process.pid}`);
  const [host, other] = privateHosts({
    servers: [
      { url: 'http://gpu-box:8000', isHere: false },
      { url: 'http://gpu-box:8000/other', isHere: false },
    ],
    taken: ['vllm-gpu-box-8000'],
    ...{
      stateDir,
      timeoutMs: 1,
      lingerMs: 1,
      env: {},
      log: createLog({ name: 'test', to: 'stderr', level: 'silent' }),
    },
  });
  expect(host).toMatchObject({ name: 'vllm-gpu-box-8000-2', url: 'http://gpu-box:8000' });
  expect(other?.name).toBe('vllm-gpu-box-8000-3');
  expect(existsSync(stateDir)).toBe(false);
});
