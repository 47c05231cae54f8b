import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { listenAddress } from '../../../agent/cli/init.ts';
import { loadAgentConfig } from '../../../agent/config.ts';
import type { Findings } from '../../../agent/doctor/first-config.ts';
import { firstConfig } from '../../../agent/doctor/first-config.ts';
import { findPrograms, findServers, findStep1x, findWeights } from '../../../agent/doctor/search.ts';

const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const NOTHING: Findings = { gpus: [], vllm: [], step1x: [], servers: [], weights: [] };
const L40 = { name: 'L40S', totalMiB: 46_068 };
const VLLM = '/opt/vllm/bin/vllm';
const KLEIN = { repository: 'black-forest-labs/FLUX.2-klein-4B', revision: COMMIT, cache: '/c' };
const ANYWHERE = { listen: '127.0.0.1:7801', isSystem: false };

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'gantry-init-'));
});
afterEach(() => rm(root, { recursive: true, force: true }));

describe('what is on a host', () => {
  test('programs in the usual places, executable ones, the path first', async () => {
    await file('opt/vllm/bin/vllm', 0o755);
    await file('home/anna/image/.venv/bin/vllm', 0o755);
    await file('srv/x/bin/vllm', 0o644);
    await file('mine/vllm', 0o755);
    const found = findPrograms('vllm', { root, path: join(root, 'mine') });
    expect(found).toEqual(
      ['mine/vllm', 'opt/vllm/bin/vllm', 'home/anna/image/.venv/bin/vllm'].map((at) => join(root, at)),
    );
  });

  test('checkouts of Step1X-Edit by their server', async () => {
    await file('opt/Step1X-Edit/unified_server.py');
    await file('opt/other/server.py');
    expect(findStep1x({ root })).toEqual([join(root, 'opt/Step1X-Edit')]);
  });

  test('weights with the commit they are of; a download that broke off is none', async () => {
    const hub = 'home/anna/.cache/huggingface/hub';
    await file(`${hub}/models--Qwen--Qwen-Image/refs/main`, 0o644, `${COMMIT}\n`);
    await file(`${hub}/models--Qwen--Qwen-Image/snapshots/${COMMIT}/model_index.json`);
    await file(`${hub}/models--Qwen--Qwen-Image-2512/refs/main`, 0o644, COMMIT);
    expect(findWeights({ root })).toEqual([
      { repository: 'Qwen/Qwen-Image', revision: COMMIT, cache: join(root, hub) },
    ]);
  });

  test('servers that name their models, and nobody else', async () => {
    const answers = ['{"data":[{"id":"Qwen/Qwen-Image"}]}', '<html>'];
    const servers = answers.map((text) => createServer((_, response) => response.end(text)));
    try {
      const ports: number[] = [];
      for (const server of servers) {
        await once(server.listen(0, '127.0.0.1'), 'listening');
        const address = server.address();
        ports.push(typeof address === 'object' && address !== null ? address.port : 0);
      }
      expect(await findServers(new AbortController().signal, [...ports, 1])).toEqual([
        { url: `http://127.0.0.1:${ports[0]}`, models: ['Qwen/Qwen-Image'] },
      ]);
    } finally {
      for (const server of servers) server.close();
    }
  });
});

describe('the first agent.yaml', () => {
  const ROWS: [what: string, found: Partial<Findings>, models: Record<string, object>][] = [
    ['names no model where there is no engine', { gpus: [L40] }, {}],
    ['names none where there is no GPU', { vllm: [VLLM] }, {}],
    [
      'names a model whose weights are here, at their commit',
      { gpus: [L40], vllm: [VLLM], weights: [KLEIN] },
      { 'flux.2-klein-4b': { id: `${KLEIN.repository}@${COMMIT}`, launch: { command: [VLLM, 'serve'] } } },
    ],
    [
      'else the largest that fits and that needs no login',
      { gpus: [{ ...L40, totalMiB: 24_564 }], vllm: [VLLM] },
      { 'flux.2-klein-4b': { id: 'black-forest-labs/FLUX.2-klein-4B' } },
    ],
    [
      'weights that do not fit are left out',
      { gpus: [{ ...L40, totalMiB: 8_000 }], vllm: [VLLM], weights: [KLEIN] },
      {},
    ],
    [
      'attaches a server that makes images, and leaves one that talks alone',
      {
        servers: [
          { url: 'http://127.0.0.1:8001', models: ['meta-llama/Llama-3'] },
          { url: 'http://127.0.0.1:8000', models: ['Qwen/Qwen-Image'] },
        ],
      },
      { 'qwen-image': { launch: { kind: 'attached', url: 'http://127.0.0.1:8000' } } },
    ],
    [
      'starts Step1X-Edit in its checkout, with its own timer out of the way',
      { step1x: ['/opt/Step1X-Edit'] },
      { 'step1x-edit': { launch: { cwd: '/opt/Step1X-Edit', env: { GPU_IDLE_TIMEOUT: '86400' } } } },
    ],
  ];
  test.each(ROWS)('%s', async (_, found, models) => {
    const { text, notes } = firstConfig({ ...NOTHING, ...found }, ANYWHERE);
    const config = await parsed(text);
    expect(Object.fromEntries(config.models.map((model) => [model.alias, model]))).toMatchObject(models);
    expect(config.models).toHaveLength(Object.keys(models).length);
    for (const alias of Object.keys(models)) expect(notes.at(-1)).toContain(alias);
  });

  test('of a system keeps everything where the service may write', async () => {
    const config = await parsed(firstConfig(NOTHING, { ...ANYWHERE, isSystem: true }).text);
    expect([config.stateDir, config.logDir]).toEqual(['/var/lib/gantry', '/var/log/gantry']);
  });

  test('says what was not found, and what the service will not see', () => {
    const { notes } = firstConfig({ ...NOTHING, gpus: [L40], vllm: ['/home/anna/venv/bin/vllm'] }, ANYWHERE);
    expect(notes).toContain('found: L40S, 46068 MiB');
    expect(notes.join('\n')).toMatch(/warning: \/home\/anna\/venv\/bin\/vllm is in a home directory/);
    expect(firstConfig(NOTHING, ANYWHERE).notes.join('\n')).toMatch(/not found: a GPU[^]*not found: vllm/);
  });

  test.each([
    ['local', '127.0.0.1:7801'],
    ['network', '0.0.0.0:7801'],
    ['10.0.0.5', '10.0.0.5:7801'],
    ['10.0.0.5:9000', '10.0.0.5:9000'],
    ['fd00::1', '[fd00::1]:7801'],
    ['[fd00::1]:9000', '[fd00::1]:9000'],
  ])('--listen %s is %s', (text, address) => {
    expect(listenAddress(text)).toBe(address);
  });
});

async function parsed(text: string) {
  const path = join(root, 'agent.yaml');
  await writeFile(path, text);
  return await loadAgentConfig({ config: path }, {});
}

async function file(path: string, mode = 0o644, text = ''): Promise<void> {
  await mkdir(join(root, dirname(path)), { recursive: true });
  await writeFile(join(root, path), text, { mode });
}
