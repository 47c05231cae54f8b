import { execa } from 'execa';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { TestNetwork, whyNoNetworks } from '../helpers/netns.ts';
import { agent, gantry, inviteFrom } from '../helpers/pairing.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const missing = await whyNoNetworks();
if (missing !== undefined) process.stdout.write(`Networks between real addresses are not tested: ${missing}.\n`);

// Hosts and laptops with addresses of their own on this one machine, with a router between them.
describe.skipIf(missing !== undefined)('between real addresses', { timeout: 120_000 }, () => {
  test('an agent off loopback makes its certificate, says who reaches it, and is paired, used and lost over TLS', async () => {
    await using network = await TestNetwork.open(['laptop', 'attic', 'elsewhere']);
    const attic = network.machine('attic');
    await using fleet = await TestFleet.start([
      {
        name: 'attic',
        enter: attic.enter,
        models: { klein: vllm(MODEL) },
        config: { listen: `${attic.address}:7801`, times: { ping_every: '200ms', silence: '2s' } },
      },
    ]);
    const host = fleet.host('attic');
    expect(host.events('certificate-made')).toHaveLength(1);
    expect(host.events('listening')).toMatchObject([
      { reach: `whoever reaches ${attic.address}:7801; with TLS, and nothing without a token` },
    ]);

    const laptop = network.machine('laptop');
    const file = join(fleet.directory, 'bridge.yaml');
    const line = await inviteFrom(host);
    expect(line).toMatch(
      new RegExp(`^gantry://${attic.address.replaceAll('.', '\\.')}:7801\\?name=.*&fp=sha256:[\\w-]{43}&code=`),
    );

    // Another network, in which nobody has that address.
    await network.silence('elsewhere');
    const away = await gantry(['add', line, '--config', file], network.machine('elsewhere'));
    expect(away).toMatchObject({ exitCode: 69 });
    expect(away.stderr).toContain('No agent answers at any address of the invite');

    const added = await gantry(['add', line, '--config', file], laptop);
    expect(added.stderr).toContain(`(wss://${attic.address}:7801, role operator)`);
    expect(added.exitCode).toBe(0);
    expect(added.stdout).toContain('connected');

    const [{ token } = { token: '' }] = (parse(await readFile(file, 'utf8')) as { hosts: { token: string }[] }).hosts;
    expect((await curl(laptop.enter, `http://${attic.address}:7801/healthz`)).exitCode, 'nothing plain').not.toBe(0);
    const rebound = await curl(
      laptop.enter,
      `https://${attic.address}:7801/readyz`,
      '-H',
      'Host: evil.example',
      '-H',
      `Authorization: Bearer ${token}`,
    );
    expect(rebound.stdout).toContain('421');

    const config = {
      ...(parse(await readFile(file, 'utf8')) as object),
      times: { ping_every: '200ms', silence: '2s', reconnect_max: '1s' },
    };
    await using bridge = await fleet.bridge(config, 'laptop', {}, laptop.enter);
    const answer = await bridge.ask('generate_image', { prompt: 'a fox', width: 256, height: 256 });
    expect(answer['status']).toBe('success');

    await network.silence('attic');
    await eventually('the agent ends the silent link', async () => host.events('link-silent')[0], 30_000);
    await eventually('the bridge ends it', async () => !(await linkIsUp(bridge)) || undefined, 30_000);
    await network.heal('attic');
    await eventually('the link comes back', async () => (await linkIsUp(bridge)) || undefined, 30_000);
    expect((await bridge.ask('generate_image', { prompt: 'two foxes', width: 256, height: 256 }))['status']).toBe(
      'success',
    );
  });

  test('the installer’s way: closed at first, opened by one command, an invite for all addresses, a first image', async () => {
    await using network = await TestNetwork.open(['laptop', 'cellar']);
    const cellar = network.machine('cellar');
    const laptop = network.machine('laptop');
    await using fleet = await TestFleet.start([
      { name: 'cellar', enter: cellar.enter, models: { klein: vllm(MODEL) }, config: { listen: '127.0.0.1:7801' } },
    ]);
    const host = fleet.host('cellar');
    const config = ['--config', join(host.directory, 'agent.yaml')];
    const closed = await agent(['invite', ...config]);
    expect(closed.stderr).toContain('This agent listens on 127.0.0.1:7801 only');
    expect(closed.stderr).toContain('gantry-agent listen network');
    const file = join(fleet.directory, 'bridge.yaml');
    const [, line = ''] = /^gantry add '(.*)'$/m.exec(closed.stdout) ?? [];
    expect(await gantry(['add', line, '--config', file], laptop)).toMatchObject({ exitCode: 69 });

    await host.stopAgent();
    const opened = await agent(['listen', 'network', ...config]);
    expect(opened.stdout).toContain('listen: 0.0.0.0:7801');
    await host.startAgent({ keepsConfig: true });
    const added = await gantry(['add', await inviteFrom(host), '--config', file], laptop);
    expect(added.exitCode).toBe(0);
    await using bridge = await fleet.bridge(
      parse(await readFile(file, 'utf8')) as Record<string, unknown>,
      'laptop',
      {},
      laptop.enter,
    );
    expect((await bridge.ask('generate_image', { prompt: 'a fox', width: 256, height: 256 }))['status']).toBe(
      'success',
    );
  });
});

async function linkIsUp(bridge: BridgeClient): Promise<boolean> {
  return JSON.stringify(await bridge.ask('list_hosts')).includes('"link":"up"');
}

/** As a stranger does, who believes any certificate. */
async function curl(enter: readonly string[], url: string, ...flags: string[]) {
  const [command = '', ...rest] = [...enter, 'curl', '-sk', '-m', '20', '-w', '%{http_code}', ...flags, url];
  return await execa(command, rest, { reject: false });
}
