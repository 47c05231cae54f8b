import { chmod, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { agent, gantry, inviteFrom } from '../helpers/pairing.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const PATIENCE = 90_000;

type Entry = { name: string; url: string; token: string; certificate?: string };

// One agent with TLS on loopback, so that all of this runs everywhere; tests/process/networks.test.ts has real addresses.
describe('a laptop is let in', { timeout: PATIENCE }, () => {
  let fleet: TestFleet;
  let host: SimulatedHost;

  beforeAll(async () => {
    fleet = await TestFleet.start([{ name: 'box', models: { klein: vllm(MODEL) }, config: { tls: 'on' } }]);
    host = fleet.host('box');
  }, PATIENCE);
  afterAll(async () => {
    await fleet[Symbol.asyncDispose]();
  }, PATIENCE);

  test('by one line: certificate and token are kept, the link is measured, and an image comes over it', async () => {
    const file = await laptop('one', '# my hosts\npreview: none # small answers\nhosts: []\n');
    const added = await gantry(['add', await inviteFrom(host), '--config', file]);
    expect(added.stderr).toContain(`is in ${file} (wss://127.0.0.1:`);
    expect(added.exitCode).toBe(0);
    expect(added.stdout).toMatch(/connected, \d+ ms/);
    expect(added.stdout).toContain('Simulated GPU');
    expect(added.stdout).toContain(MODEL);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect(await readFile(file, 'utf8')).toMatch(/^# my hosts\npreview: none # small answers\nhosts:\n {2}- name: /);
    const [entry] = await hostsOf(file);
    expect(entry?.certificate).toMatch(/^-----BEGIN CERTIFICATE-----/);
    const before = Buffer.from(await readFile(join(host.directory, 'state', 'certificate.pem')));
    expect(before.includes(entry?.certificate?.split('\n')[1] ?? 'nothing')).toBe(true);

    await using bridge = await start(file, 'one');
    const answer = await bridge.ask('generate_image', { prompt: 'a fox', width: 256, height: 256 });
    expect(answer['status']).toBe('success');
    expect(await readdir(join(fleet.directory, 'one', 'out'))).toHaveLength(1);
  });

  test('an invite that could not be kept is still good', async () => {
    const line = await inviteFrom(host);
    const nowhere = await gantry(['add', line, '--config', '/sys/gantry/bridge.yaml']);
    expect(nowhere.exitCode).not.toBe(0);
    expect(nowhere.stderr).toMatch(
      /SAVE_FAILED: \/sys\/gantry\/bridge\.yaml cannot be written \(E[A-Z]+\), so .* still good/,
    );
    expect((await gantry(['add', line, '--config', await laptop('later')])).exitCode).toBe(0);
  });

  test('once: the code is dead afterwards, and the same agent is not added twice', async () => {
    const file = await laptop('twice');
    const line = await inviteFrom(host);
    expect((await gantry(['add', line, '--config', file])).exitCode).toBe(0);
    const again = await gantry(['add', line, '--config', file]);
    expect(again).toMatchObject({ exitCode: 2 });
    expect(again.stderr).toMatch(/This agent is in .*bridge\.yaml already, as .*To pair anew: gantry remove /);
    const other = await gantry(['add', line, '--config', await laptop('other')]);
    expect(other).toMatchObject({ exitCode: 77 });
    expect(other.stderr).toContain(
      'The agent refused the code: it was used, it is older than ten minutes, or it never was.',
    );
    expect(other.stderr).not.toContain(line.split('code=')[1] ?? line);
  });

  test('not by somebody else in its place: nothing is sent to another certificate', async () => {
    await using other = await TestFleet.start([{ name: 'other', models: {}, config: { tls: 'on' } }]);
    const port = new URL(other.host('other').url).port;
    const line = (await inviteFrom(host)).replace(/127\.0\.0\.1:\d+/, `127.0.0.1:${port}`);
    const file = await laptop('misled');
    const added = await gantry(['add', line, '--config', file]);
    expect(added).toMatchObject({ exitCode: 77 });
    expect(added.stderr).toContain('shows another certificate than the invite names');
    const audit = await readFile(join(other.host('other').directory, 'state', 'audit.jsonl'), 'utf8').catch(() => '');
    expect(audit).not.toContain('"pair"');
    // The right agent still takes the code: it was never shown to anybody.
    expect((await gantry(['add', line.replace(port, portOf(host)), '--config', file])).exitCode).toBe(0);
  });

  test('under a name of its own, and out again', async () => {
    const file = await laptop('named', 'log_level: warn\n');
    expect((await gantry(['add', await inviteFrom(host), '--name', 'attic', '--config', file])).exitCode).toBe(0);
    expect((await hostsOf(file)).map(({ name }) => name)).toEqual(['attic']);
    const removed = await gantry(['remove', 'attic', '--config', file]);
    expect(removed).toMatchObject({ exitCode: 0 });
    expect(removed.stderr).toContain(
      'Its token is still valid; end it on that host with `gantry-agent tokens revoke`.',
    );
    expect(await hostsOf(file)).toEqual([]);
    expect(await readFile(file, 'utf8')).toContain('log_level: warn');
    expect(await gantry(['remove', 'attic', '--config', file])).toMatchObject({ exitCode: 2 });
  });

  test('a viewer looks and changes nothing, whatever it calls itself', async () => {
    const file = await laptop('viewer');
    expect((await gantry(['add', await inviteFrom(host, '--role', 'viewer'), '--config', file])).stderr).toContain(
      'role viewer',
    );
    await using bridge = await start(file, 'viewer');
    const load = await bridge.call('load_model', { model: MODEL });
    expect(load).toMatchObject({ isError: true });
    expect(load.text).toContain('needs a token of role operator');
  });

  test('revoking ends the link at once and says what to do', async () => {
    const file = await laptop('revoked');
    expect((await gantry(['add', await inviteFrom(host), '--name', 'r', '--config', file])).exitCode).toBe(0);
    await using bridge = await start(file, 'revoked', { times: { reconnect_first: '50ms', reconnect_max: '200ms' } });
    await eventually('the link is up', async () => (await linkOf(bridge)) === 'up' || undefined, 30_000);
    const config = ['--config', join(host.directory, 'agent.yaml')];
    const names = (JSON.parse((await agent(['tokens', 'list', '--json', ...config])).stdout) as { name: string }[]).map(
      ({ name }) => name,
    );
    const newest = names.at(-1) ?? '';
    const { stdout } = await agent(['tokens', 'revoke', newest, ...config]);
    expect(stdout).toContain(`${newest} is revoked.`);
    await eventually('the link is refused', async () => (await linkOf(bridge)) === 'AUTH_FAILED' || undefined, 30_000);
    const audit = await readFile(join(host.directory, 'state', 'audit.jsonl'), 'utf8');
    expect(audit).toContain(`"action":"token.revoke","object":"${newest}","outcome":"ok","from":"host"`);
  });

  test('by the environment: two bridges at once make one token of one invite', async () => {
    const line = await inviteFrom(host);
    const tokensBefore = await tokenCount();
    const file = await laptop('env');
    const env = { GANTRY_HOSTS: `${line}\n` };
    await using one = await start(file, 'env', {}, env);
    await using two = await start(file, 'env', {}, env);
    const links = await Promise.all([linkOf(one, 30_000), linkOf(two, 30_000)]);
    expect(links).toEqual(['up', 'up']);
    expect((await tokenCount()) - tokensBefore).toBe(1);
    const paired = join(fleet.directory, 'env', '.local/state/gantry/paired');
    const [directory = ''] = await readdir(paired);
    const kept = join(paired, directory, 'host.json');
    expect((await stat(kept)).mode & 0o777).toBe(0o600);
    expect(await hostsOf(file)).toEqual([]);
    // Another day: the code is long dead, the token is there.
    await using later = await start(file, 'env', {}, env);
    expect(await linkOf(later, 30_000)).toBe('up');
    expect((await tokenCount()) - tokensBefore).toBe(1);
  });

  test('by the environment: an invite that was used, and a line that is none, are said in a sentence each', async () => {
    const line = await inviteFrom(host);
    expect((await gantry(['add', line, '--config', await laptop('first')])).exitCode).toBe(0);
    await using bridge = await start(await laptop('late'), 'late', {}, { GANTRY_HOSTS: `${line} gantry://nonsense` });
    const { hosts } = (await bridge.ask('list_hosts')) as { hosts: { error?: string }[] };
    const said = JSON.stringify(hosts);
    expect(said).toContain('in GANTRY_HOSTS cannot be used (any more)');
    expect(said).toContain('Run `gantry-agent invite` on that host');
    expect(said).toContain('This is no invite');
  });

  test('through ssh, and through a tunnel where nothing else gets there', async () => {
    // The stand-in runs the command here, and forwards a port as ssh does.
    const bin = join(fleet.directory, 'bin');
    await mkdir(bin, { recursive: true });
    await writeFile(join(bin, 'ssh'), SSH);
    await chmod(join(bin, 'ssh'), 0o755);
    const wrapper = `#!/bin/sh\nexec '${process.execPath}' '${join(process.cwd(), 'dist/gantry-agent.mjs')}' "$@" --config '${join(host.directory, 'agent.yaml')}'\n`;
    await writeFile(join(bin, 'gantry-agent'), wrapper, { mode: 0o755 });
    const env = { PATH: `${bin}:${process.env['PATH'] ?? ''}`, SSH_LOG: join(fleet.directory, 'ssh.log') };
    const file = await laptop('ssh');
    const added = await gantry(['add', '--ssh', 'me@box', '--config', file], { env });
    expect(added.stderr).toContain('Only a tunnel reaches me@box: its agent listens on that machine alone.');
    expect(added.stderr).toMatch(/ssh -N -L \d+:127\.0\.0\.1:\d+ me@box/);
    expect(added.exitCode).toBe(0);
    expect(added.stdout).toContain('connected');
    const [entry] = await hostsOf(file);
    expect(entry?.url).toMatch(/^wss:\/\/127\.0\.0\.1:78\d\d$/);
    const calls = (await readFile(env.SSH_LOG, 'utf8')).trim().split('\n');
    expect(calls[0]).toBe('["--","me@box","gantry-agent","invite","--json"]');
    const evil = await gantry(['add', '--ssh=-oProxyCommand=touch /tmp/x', '--config', file], { env });
    expect(evil).toMatchObject({ exitCode: 2 });
    expect(evil.stderr).toContain('is not a destination of ssh');
    expect((await readFile(env.SSH_LOG, 'utf8')).trim().split('\n')).toHaveLength(calls.length);
    const away = await gantry(['add', '--ssh', 'nobody@away', '--config', file], { env });
    expect(away).toMatchObject({ exitCode: 69 });
    expect(away.stderr).toContain('ssh has no connection to nobody@away');
  });

  async function laptop(name: string, text = ''): Promise<string> {
    const directory = join(fleet.directory, name);
    await mkdir(join(directory, 'out'), { recursive: true });
    const file = join(directory, 'bridge.yaml');
    if (text !== '') await writeFile(file, text, { mode: 0o600 });
    return file;
  }

  /** A bridge on that laptop; what is given is added to its bridge.yaml. */
  async function start(
    file: string,
    name: string,
    config: Record<string, unknown> = {},
    env: Readonly<Record<string, string>> = {},
  ): Promise<BridgeClient> {
    const home = join(fleet.directory, name);
    const own = await readFile(file, 'utf8').catch(() => '');
    const more = { output_dir: join(home, 'out'), roots: [home], ...config };
    const path = join(home, 'bridge-of-test.yaml');
    await writeFile(path, JSON.stringify({ ...(parse(own) as object | null), ...more }), { mode: 0o600 });
    return await BridgeClient.start({ config: path, home, env });
  }

  async function tokenCount(): Promise<number> {
    const { stdout } = await agent(['tokens', 'list', '--json', '--config', join(host.directory, 'agent.yaml')]);
    return (JSON.parse(stdout) as unknown[]).length;
  }
});

async function hostsOf(file: string): Promise<Entry[]> {
  const read = parse(await readFile(file, 'utf8').catch(() => '')) as { hosts?: Entry[] } | null;
  return read?.hosts ?? [];
}

/** `up`, or the code of what is wrong; of the first host. */
async function linkOf(bridge: BridgeClient, withinMs = 0): Promise<string> {
  const look = async (): Promise<string> => {
    const text = JSON.stringify(await bridge.ask('list_hosts'));
    return /"link":"up"|"status":"connected"|"state":"up"/.test(text)
      ? 'up'
      : (/AUTH_FAILED|AGENT_UNREACHABLE/.exec(text)?.[0] ?? 'connecting');
  };
  if (withinMs === 0) return await look();
  return await eventually('the link is up', async () => ((await look()) === 'up' ? 'up' : undefined), withinMs);
}

function portOf({ url }: SimulatedHost): string {
  return new URL(url).port;
}

const SSH = `#!/usr/bin/env node
const { appendFileSync } = require('node:fs');
const { spawnSync } = require('node:child_process');
const net = require('node:net');
const args = process.argv.slice(2);
appendFileSync(process.env.SSH_LOG, JSON.stringify(args) + '\\n');
const target = args[args.indexOf('--') + 1];
if (target === 'nobody@away') process.exit(255);
const forward = args.indexOf('-L');
if (forward < 0) {
  const [command, ...rest] = args.slice(args.indexOf('--') + 2);
  process.exit(spawnSync(command, rest, { stdio: 'inherit' }).status);
}
const [, from, to, port] = /^127\\.0\\.0\\.1:(\\d+):(.*):(\\d+)$/.exec(args[forward + 1]);
net.createServer((socket) => {
  const other = net.connect(Number(port), to);
  socket.pipe(other).pipe(socket);
  for (const each of [socket, other]) each.on('error', () => { socket.destroy(); other.destroy(); });
}).listen(Number(from), '127.0.0.1');
`;
