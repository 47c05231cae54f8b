import { execa } from 'execa';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { statusLines } from '../../../bridge/cli/status.ts';
import { AppError } from '../../../shared/errors.ts';
import { gpu, host, model } from '../fleet/builders.ts';

const PROGRAM = resolve('dist/gantry.cjs');
let home: string;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'gantry-cli-'));
});
afterAll(() => rm(home, { recursive: true, force: true }));

function gantry(...args: string[]) {
  return execa(process.execPath, [PROGRAM, ...args], {
    reject: false,
    env: { HOME: home },
    extendEnv: false,
    cwd: home,
  });
}

async function config(text: string): Promise<string> {
  const path = join(home, 'bridge.yaml');
  await writeFile(path, text, { mode: 0o600 });
  return path;
}

test('status without a host says how to add one, and that nothing is there', async () => {
  const { stdout, exitCode } = await gantry('status');
  expect(stdout).toContain('No host is configured');
  expect(exitCode).toBe(69);
});

test('status shows a host that is not there with the reason, as a line and as JSON', async () => {
  const path = await config('hosts: [{ name: gone, url: "ws://127.0.0.1:9", token: gantry_secret }]\n');
  const text = await gantry('status', '--config', path);
  expect(text.stdout).toMatch(
    /^gone {2}ws:\/\/127\.0\.0\.1:9 {2}not connected: AGENT_UNREACHABLE\n {2}No connection to gone at .*gantry-agent runs there\.$/,
  );
  expect(text.exitCode).toBe(69);
  const json = await gantry('status', '--config', path, '--json');
  expect(JSON.parse(json.stdout)).toMatchObject({
    schema: 1,
    hosts: [{ name: 'gone', link: 'down', error: { code: 'AGENT_UNREACHABLE' } }],
  });
  expect(text.stdout + text.stderr + json.stdout + json.stderr).not.toContain('gantry_secret');
});

test('config check names the file, or every problem in it with exit code 78', async () => {
  const good = await gantry('config', 'check', '--config', await config('preview: none\n'));
  expect(good).toMatchObject({
    exitCode: 0,
    stdout: `${join(home, 'bridge.yaml')}: no problem found. Hosts: none yet; add one under \`hosts\`.`,
  });
  const bad = await gantry('config', 'check', '--config', await config('previw: none\nhosts: 3\n'));
  expect(bad.exitCode).toBe(78);
  expect(bad.stderr).toMatch(/previw: unknown key\. Did you mean preview\?/);
  expect(bad.stderr).toMatch(/hosts: /);
  const started = await gantry('bridge', '--config', join(home, 'none.yaml'));
  expect(started).toMatchObject({ exitCode: 78, stdout: '' });
});

test('config schema prints a JSON Schema', async () => {
  const { stdout } = await gantry('config', 'schema');
  expect(JSON.parse(stdout)).toMatchObject({ type: 'object', additionalProperties: false });
});

test('an unknown command is refused on stderr', async () => {
  const { exitCode, stdout, stderr } = await gantry('statsu');
  expect(exitCode).not.toBe(0);
  expect(stdout).toBe('');
  expect(stderr).toContain('status');
});

test('a connecting host is a line too', () => {
  const lines = statusLines([
    { name: 'a', url: 'ws://a:1', link: { kind: 'connecting' }, snapshot: undefined, statusAgeMs: 0, transferMs: 0 },
  ]);
  expect(lines).toEqual(['a  ws://a:1  connecting']);
});

test('on 80 columns no line is longer, and no sentence is cut', () => {
  const error = new AppError('AGENT_UNREACHABLE', `No connection to ${'far '.repeat(30)}away. Check that it runs.`);
  const detail =
    'the driver refused: \u001b[31mthis \u0007text is of a host and longer than a line of a terminal can be, as it were';
  const lines = statusLines(
    [
      host('down', { link: { kind: 'down', error, retryInMs: 1 } }),
      host('up', { snap: { models: [model({ state: 'failed', detail, model: `acme/${'x'.repeat(100)}` })] } }),
    ],
    80,
  );
  expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
  const text = lines.map((line) => line.trim()).join(' ');
  expect(text).toContain('away. Check that it runs.');
  expect(text).toContain('as it were');
  expect(text).not.toMatch(/\p{Cc}/u);
  expect(lines.find((line) => line.includes('failed'))).toMatch(/^ {2}painter {2}failed, 19\.5 GiB {2}acme\/x+…$/);
});

test('of what a failed server wrote only the last line is shown', () => {
  const detail = 'The server of painter was ended by SIGKILL. The last lines of its log:\nfirst\nsecond\nthird';
  const lines = statusLines([host('up', { snap: { models: [model({ state: 'failed', detail })] } })], 80);
  expect(lines.slice(-2)).toEqual([
    '    The server of painter was ended by SIGKILL. The last lines of its log:',
    '    third',
  ]);
});

test('a GPU says why it is not used, whose memory is missing, and that it has the memory of the host', () => {
  const gpus = [
    gpu({ index: 0, health: 'lost', freeMiB: null, note: 'GPU 0 is lost. Reboot the host to get it back.' }),
    gpu({ index: 1, isDegraded: true, degraded: '8000 MiB of the ended server with pid 7 did not come back.' }),
    gpu({ index: 2, isUnified: true, unlisted: '3000 MiB are in use by others.' }),
  ];
  const lines = statusLines([host('up', { snap: { gpus, models: [] } })], 100).slice(1);
  expect(lines).toHaveLength(6);
  expect(lines[0]).toMatch(/^ {2}GPU 0 .* free \? of .* GiB {2}lost$/);
  expect(lines[1]).toBe('    GPU 0 is lost. Reboot the host to get it back.');
  expect(lines[2]).toMatch(/GiB {2}degraded$/);
  expect(lines[3]).toContain('8000 MiB of the ended server');
  expect(lines[4]).toMatch(/GiB of host RAM$/);
  expect(lines[5]).toContain('3000 MiB are in use by others.');
});
