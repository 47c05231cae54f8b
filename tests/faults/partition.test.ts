import { X509Certificate } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually, TestFleet } from '../helpers/fleet.ts';
import { TestNetwork, whyNoNetworks } from '../helpers/netns.ts';
import { loaded, startBatch, untilEnded } from './batch.ts';
import { fault } from './fault.ts';
import { expectFiles, manifestOf } from './history.ts';
import { agentConfig, bridgeConfig } from './scale.ts';

const PORT = 7801;
const cannot = await whyNoNetworks();

// The rows of F23 in network.test.ts have a proxy between; here nobody closes or keeps anything, and the links are TLS.
describe('between real addresses', () => {
  fault(
    'F23',
    'a machine of a real network falls silent, heal after its jobs were taken elsewhere',
    async (row) => {
      await using network = await TestNetwork.open(['laptop', 'a', 'b']);
      await using fleet = await TestFleet.start(
        ['a', 'b'].map((name) => ({
          name,
          enter: network.machine(name).enter,
          models: { klein: loaded() },
          config: { ...agentConfig(), listen: `${network.machine(name).address}:${PORT}` },
        })),
      );
      const hosts = await Promise.all(
        fleet.hosts.map(async ({ name, token, directory }) => {
          const pem = await readFile(join(directory, 'state', 'certificate.pem'), 'utf8');
          const url = `wss://${network.machine(name).address}:${PORT}`;
          return { name, url, token, certificate: new X509Certificate(pem).toString() };
        }),
      );
      const bridge = await fleet.bridge({ ...bridgeConfig(), hosts }, 'laptop', {}, network.machine('laptop').enter);
      const id = await startBatch(bridge, 16);
      const [a, b] = [fleet.host('a'), fleet.host('b')];
      await eventually('a runs one', () => Promise.resolve(a.events('job-accepted')[0]));
      row.injected();
      await network.silence('a');
      // Of these none can be fetched any more.
      const saved = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'saved' ? [line.jobId] : []));
      const lost = (await sentTo(fleet, id, 'a')).filter((jobId) => !saved.includes(jobId));
      await row.sees('the agent ends the link', 45_000, async () => a.events('link-silent')[0]);
      await row.sees('the bridge ends the link', 45_000, async () =>
        JSON.stringify(await bridge.ask('list_hosts')).includes('AGENT_UNREACHABLE') ? true : undefined,
      );
      expect(await untilEnded(bridge, id)).toBe('success');
      const again = (await sentTo(fleet, id, 'b')).filter((jobId) => lost.includes(jobId));
      expect(again.length, 'jobs of a that b was sent').toBeGreaterThan(0);
      expect(b.events('job-done').length).toBeGreaterThan(0);
      row.holds('its jobs were taken elsewhere');
      await network.heal('a');
      await eventually('nothing waits for its acknowledgement', async () => (await resultsOf(a)).length === 0);
      await expectFiles(fleet, id);
      row.holds('after the heal: late results acknowledged unseen, one file for each job');
    },
    { cannot },
  );
});

/** Jobs that this host was sent. */
async function sentTo(fleet: TestFleet, id: string, host: string): Promise<string[]> {
  return (await manifestOf(fleet, id)).flatMap((line) =>
    line.type === 'sent' && line.host === host ? [line.jobId] : [],
  );
}

/** What the agent keeps: an acknowledgement deletes it. */
async function resultsOf({ directory }: SimulatedHost): Promise<string[]> {
  const names = await readdir(join(directory, 'state', 'results'), { recursive: true });
  return names.filter((name) => /[0-9a-f-]{36}.*\.(png|jpg|webp)$/.test(name));
}
