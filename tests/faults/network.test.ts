import { describe, expect } from 'vitest';
import { ChaosProxy } from '../helpers/chaos-proxy.ts';
import type { TestFleet } from '../helpers/fleet.ts';
import { eventually } from '../helpers/fleet.ts';
import { startBatch, startFleet, untilEnded, untilReady, untilRunning } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig, scaledMs } from './scale.ts';

/** bridge.yaml for hosts of which some are reached through a proxy. */
function through(fleet: TestFleet, proxies: Readonly<Record<string, ChaosProxy>>): Record<string, unknown> {
  const hosts = fleet.hosts.map(({ name, url, token }) => ({ name, url: proxies[name]?.url ?? url, token }));
  return { ...bridgeConfig(), hosts };
}

describe('the network between bridge and host', () => {
  fault('F22', 'RST in the middle of an image', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    await using proxy = await ChaosProxy.start(fleet.host('a'));
    const bridge = await fleet.bridge(through(fleet, { a: proxy }));
    const image = /^GET \/v1\/results\/[^/ ]+ /;
    proxy.resetNext({ firstLine: image, afterBytes: 4_000, times: 1 });
    const id = await startBatch(bridge, 2);
    expect(await untilEnded(bridge, id)).toBe('success');
    expect(proxy.resets).toBe(1);
    const fetched = proxy.firstLines.filter((line) => image.test(line));
    expect(new Set(fetched).size, 'images').toBe(2);
    expect(fetched, 'one transfer more').toHaveLength(3);
    await row.holds('fetched again, once');
    await expectHistory(fleet, id); // no partial file: every file in the directory belongs to a job
    await row.holds('sha256 as announced, no partial file');
  });

  fault('F23', 'silent partition, heal after the jobs were taken elsewhere', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    await using proxy = await ChaosProxy.start(fleet.host('a'));
    const bridge = await fleet.bridge(through(fleet, { a: proxy }));
    const id = await startBatch(bridge, 6);
    await untilRunning(fleet.host('a'));
    const taken = await takenBy(fleet, id, 'a');
    row.injected();
    proxy.set({ isSilent: true });
    await row.sees('the agent ends the link', 45_000, async () => fleet.host('a').events('link-silent')[0]);
    await row.sees('the bridge ends the link', 45_000, async () => (await linkOf(bridge, 'a')) === 'AGENT_UNREACHABLE');
    expect(await untilEnded(bridge, id)).toBe('success');
    const again = (await takenBy(fleet, id, 'b')).filter((jobId) => taken.includes(jobId));
    expect(again.length, 'jobs done twice').toBeGreaterThan(0);
    await row.holds('its jobs were taken elsewhere');
    expect(fleet.host('a').events('job-done').map(({ jobId }) => jobId)).toEqual(expect.arrayContaining(again));
    proxy.set({});
    await expectHistory(fleet, id);
    await row.holds('after the heal: late results acknowledged unseen, one file for each job');
  });

  fault('F23', 'silent partition, heal while the job runs elsewhere', async (row) => {
    const slow = { 'step-ms': 1_500 };
    await using fleet = await startFleet({ a: {}, b: slow });
    await untilReady(fleet);
    await using proxy = await ChaosProxy.start(fleet.host('a'));
    const bridge = await fleet.bridge(through(fleet, { a: proxy }));
    const id = await startBatch(bridge, 3);
    await untilRunning(fleet.host('a'));
    const taken = await takenBy(fleet, id, 'a');
    row.injected();
    proxy.set({ isSilent: true });
    const jobId = await eventually(
      'b took a job of a',
      async () => (await takenBy(fleet, id, 'b')).find((job) => taken.includes(job)),
      60_000,
    );
    proxy.set({});
    expect(await untilEnded(bridge, id)).toBe('success');
    const saved = (await manifestOf(fleet, id)).find((line) => line.type === 'saved' && line.jobId === jobId);
    expect(saved).toMatchObject({ host: 'a' });
    await row.holds('the first verified result wins');
    await expectHistory(fleet, id);
    await row.holds('the other is cancelled and acknowledged unseen, one file for each job');
  });

  fault('F23', 'silent partition in the middle of an image', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    await using proxy = await ChaosProxy.start(fleet.host('a'));
    const bridge = await fleet.bridge(through(fleet, { a: proxy }));
    const id = await startBatch(bridge, 4);
    await untilRunning(fleet.host('a'));
    proxy.set({ bytesPerS: 10_000 });
    const isImage = (line: string): boolean => /^GET \/v1\/results\/[^/ ]+ /.test(line);
    await eventually('an image of a is on its way', async () => proxy.firstLines.some(isImage), 60_000);
    row.injected();
    proxy.set({ isSilent: true });
    await row.sees('its job is taken elsewhere', 45_000, async () => {
      const lines = await manifestOf(fleet, id);
      const doneByA = fleet.host('a').events('job-done').map(({ jobId }) => jobId);
      return lines.find((line) => line.type === 'sent' && line.host === 'b' && doneByA.includes(line.jobId));
    });
    expect(await untilEnded(bridge, id)).toBe('success');
    proxy.set({});
    await expectHistory(fleet, id);
    await row.holds('one file for each job');
  });

  fault('F24', '300 ms latency + 7-byte slices', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    await using proxy = await ChaosProxy.start(fleet.host('a'));
    proxy.set({ latencyMs: scaledMs(300), sliceBytes: 7 });
    const bridge = await fleet.bridge(through(fleet, { a: proxy }));
    const id = await startBatch(bridge, 4);
    expect(await untilEnded(bridge, id)).toBe('success');
    const links = proxy.firstLines.filter((line) => line.startsWith('GET /v1/ws '));
    expect(links, 'links that were opened').toHaveLength(1);
    expect(fleet.host('a').events('grant-expired')).toEqual([]);
    const attempts = (await manifestOf(fleet, id)).filter(({ type }) => type === 'sent' || type === 'refused');
    expect(attempts, 'takes').toHaveLength(4);
    await row.holds('no link lost, no grant expired, each job taken once');
    await expectHistory(fleet, id);
    await row.holds('every image whole');
  });
});

async function linkOf(bridge: Awaited<ReturnType<TestFleet['bridge']>>, name: string): Promise<string | undefined> {
  const { hosts } = (await bridge.ask('list_hosts')) as { hosts: { host: string; problem?: string }[] }; // shape of the tool's schema
  return hosts.find(({ host }) => host === name)?.problem?.split(':')[0];
}

/** Jobs that this host was sent. */
async function takenBy(fleet: TestFleet, id: string, host: string): Promise<string[]> {
  return (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'sent' && line.host === host ? [line.jobId] : []));
}
