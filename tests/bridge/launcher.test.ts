import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';

/** Says whether V8 took the compiled code, and then does what the arguments say. */
const PROBE = `
  const [launcher] = process.argv.splice(2, 1);
  process.stderr.write(String(require(launcher).script.cachedDataRejected));
`;

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-launcher-'));
  await cp('dist/gantry.cjs', join(directory, 'gantry.cjs'));
  await cp('dist/bridge', join(directory, 'bridge'), { recursive: true });
});
afterEach(() => rm(directory, { recursive: true }));

async function start(): Promise<{ stdout: string; stderr: string }> {
  await writeFile(join(directory, 'probe.cjs'), PROBE);
  const args = [join(directory, 'probe.cjs'), join(directory, 'gantry.cjs'), 'config', 'schema'];
  return await promisify(execFile)(process.execPath, args, { env: { HOME: directory } });
}

async function compiledCode(): Promise<string> {
  const names = await readdir(join(directory, 'bridge'));
  expect(names.toSorted(), 'nothing of an older build stays').toEqual([
    expect.stringMatching(/^[0-9a-f]{16}-v[\d.]+\.code$/),
    expect.stringMatching(/^[0-9a-f]{16}\.cjs$/),
  ]);
  return join(directory, 'bridge', names.find((name) => name.endsWith('.code')) ?? '');
}

test('the bridge runs with the code that its build compiled', async () => {
  await compiledCode();
  const { stdout, stderr } = await start();
  expect(stderr).toBe('false');
  expect(JSON.parse(stdout)).toHaveProperty('properties.hosts');
});

test('without it, as after a build by another Node, the bridge runs too', async () => {
  await rm(await compiledCode());
  const { stdout, stderr } = await start();
  expect(stderr).toBe('undefined');
  expect(JSON.parse(stdout)).toHaveProperty('properties.hosts');
});

test('code of another V8 is refused, and the bridge runs too', async () => {
  const path = await compiledCode();
  const code = await readFile(path);
  code.writeUInt32LE(code.readUInt32LE(4) ^ 1, 4); // the hash of V8's version
  await writeFile(path, code);
  const { stdout, stderr } = await start();
  expect(stderr).toBe('true');
  expect(JSON.parse(stdout)).toHaveProperty('properties.hosts');
});

test('a reader that has seen enough, as `head` has, ends a command without a word', async () => {
  const child = spawn(process.execPath, [join(directory, 'gantry.cjs'), '--help'], { env: { HOME: directory } });
  child.stdout.destroy();
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const [exitCode] = (await once(child, 'close')) as [number | null]; // as Node documents it
  expect({ exitCode, said }).toEqual({ exitCode: 0, said: '' });
});
