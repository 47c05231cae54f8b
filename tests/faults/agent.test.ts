import { describe, expect, test } from 'vitest';
import { eventually, processTree } from '../helpers/fleet.ts';
import { statusOf } from '../helpers/host-status.ts';
import { progressOf, serverOf, startBatch, startFleet, untilDone, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory } from './history.ts';
import { allGone } from './processes.ts';
import { bridgeConfig } from './scale.ts';

const RESTART_MS = 2_000;

describe('the agent dies', () => {
  fault('F13', 'SIGKILL idle, model loaded', async (row) => {
    await using fleet = await startFleet({ a: { setsid: true, orphan: true } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    row.injected();
    await host.stopAgent('SIGKILL');
    expect(await allGone(tree), 'left over by the crash').toBe(false);
    const fromLine = host.log.length;
    await host.startAgent();
    await row.sees('left-overs gone', RESTART_MS + 10_000, async () => await allGone(tree));
    const named = JSON.stringify(host.events('server-left-over', { fromLine }));
    for (const pid of tree) expect(named).toMatch(new RegExp(`\\b${pid}\\b`));
    await row.holds('and named in the log');
    await row.sees('loaded anew, status right', RESTART_MS + 10_000, async () => {
      const { snapshot } = await statusOf(host);
      const pids = await host.computePids();
      const [model] = snapshot.models;
      const [gpu] = snapshot.gpus;
      if (model?.state !== 'ready' || gpu === undefined || pids.some((pid) => tree.includes(pid))) return undefined;
      return gpu.oursMiB === gpu.usedMiB && gpu.foreign.length === 0 && model.heldMiB === gpu.usedMiB;
    });
    expect(await host.computePids()).toHaveLength(1);
  });

  test.each(['a', 'b'])('F14, F26: the agent of host %s is killed in the middle of a batch', async (name) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const host = fleet.host(name);
    const tree = (await processTree(host.pid)).filter((pid) => pid !== host.pid);
    await host.stopAgent('SIGKILL');
    expect(await untilEnded(bridge, id)).toBe('success');
    await host.startAgent();
    await eventually('the old tree is gone', async () => await allGone(tree));
    await expectHistory(fleet, id);
  });

  test('F14, F26: the same at the times as shipped: the batch ends within a minute', async () => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge();
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const killedAtMs = performance.now();
    await fleet.host('a').stopAgent('SIGKILL');
    expect(await untilEnded(bridge, id)).toBe('success');
    expect(performance.now() - killedAtMs).toBeLessThan(60_000);
    await expectHistory(fleet, id);
  });

  test('F14: an agent that is killed and comes back at once finishes its share', async () => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    for (const host of fleet.hosts) {
      await host.stopAgent('SIGKILL');
      await host.startAgent();
    }
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
  });

  test('F27: all hosts gone: the batch stays, says which hosts and why, and goes on by itself', async () => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    for (const host of fleet.hosts) await host.stopAgent('SIGKILL');
    const hosts = await eventually('both links are down', async () => {
      const text = JSON.stringify(await bridge.ask('list_hosts'));
      return text.includes('AGENT_UNREACHABLE') && text;
    });
    expect(hosts).toMatch(/127\.0\.0\.1/);
    expect((await progressOf(bridge, id)).state).toBe('running');
    for (const host of fleet.hosts) await host.startAgent();
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
  });
});
