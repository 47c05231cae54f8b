import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { mayUse, packagesBeside, readDriver, readProcesses, readTokens } from '../../../agent/doctor/gather.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-gather-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

test('what another user may do is judged by modes and owners, of every directory above too', async () => {
  const stranger = { uid: 64_999, gids: [64_999] };
  const own = { uid: process.getuid?.() ?? 0, gids: [process.getgid?.() ?? 0] };
  expect(mayUse('/etc/passwd', stranger, 0o4)).toBe(true);
  expect(mayUse('/etc/passwd', stranger, 0o2)).toBe(false);
  await mkdir(join(dir, 'closed'));
  await writeFile(join(dir, 'closed', 'file'), '', { mode: 0o666 });
  await chmod(join(dir, 'closed'), 0o700);
  expect(mayUse(join(dir, 'closed', 'file'), stranger, 0o4)).toBe(false);
  expect(mayUse(join(dir, 'closed', 'file'), own, 0o4)).toBe(true);
  expect(mayUse(join(dir, 'nothing'), stranger, 0o4)).toBe(false);
});

test('versions of an engine are read off its environment, and nothing is run for it', async () => {
  const packages = join(dir, 'venv/lib/python3.12/site-packages');
  for (const name of [
    'vllm-0.14.0.dist-info',
    'transformers-4.57.1.dist-info',
    'torch-2.9.0+cu128.dist-info',
    'numpy',
  ]) {
    await mkdir(join(packages, name), { recursive: true });
  }
  expect(packagesBeside(join(dir, 'venv/bin/vllm'))).toEqual({
    ...{ vllm: '0.14.0', transformers: '4.57.1', torch: '2.9.0+cu128' },
  });
  expect(packagesBeside('/nowhere/bin/vllm')).toEqual({});
});

test('the driver, its CUDA and the persistence mode are what nvidia-smi says; one that fails is a problem', async () => {
  const smi = await program(
    `case "$*" in
       *persistence_mode*) echo "0, NVIDIA L4, 570.1, Disabled";;
       *compute-apps*) echo "77, /usr/bin/blender, 900"; echo "78, [Not Found], [N/A]";;
       *) echo "| NVIDIA-SMI 570.1   Driver Version: 570.1   CUDA Version: 12.8 |";;
     esac`,
  );
  expect(await readDriver(smi)).toEqual({
    driver: { version: '570.1', cuda: '12.8', answerMs: expect.any(Number) as number },
    gpus: [{ index: 0, name: 'NVIDIA L4', isPersistent: false }],
  });
  expect(await readProcesses(smi)).toEqual([
    { pid: 77, name: '/usr/bin/blender', usedMiB: 900 },
    { pid: 78, name: '[Not Found]', usedMiB: undefined },
  ]);
  expect(await readDriver(await program('exit 9'))).toMatchObject({
    driver: { problem: expect.stringContaining('exit code 9') as string },
  });
  expect(await readDriver(join(dir, 'none'))).toMatchObject({
    driver: { problem: expect.stringContaining('is not there') as string },
  });
});

test('tokens are counted, with the mode of their file; none is no error', async () => {
  expect(readTokens(dir)).toMatchObject({ count: 0, mode: 0o600 });
  await writeFile(join(dir, 'tokens.json'), '{"tokens":[{"sha256":"a"},{"sha256":"b"}]}', { mode: 0o640 });
  expect(readTokens(dir)).toMatchObject({ count: 2, mode: 0o640 });
});

test('a link in the place of the tokens is not taken for them: its target is not for --fix to change', async () => {
  await writeFile(join(dir, 'another'), '{}', { mode: 0o644 });
  await symlink(join(dir, 'another'), join(dir, 'tokens.json'));
  expect(readTokens(dir)).toBeUndefined();
});

let programs = 0;
async function program(script: string): Promise<string> {
  programs += 1;
  const path = join(dir, `nvidia-smi-${programs}`);
  await writeFile(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return path;
}
