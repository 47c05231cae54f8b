import { execa } from 'execa';
import { readFileSync } from 'node:fs';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { describe, expect, vi } from 'vitest';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { Ledger, startTimeOf } from '../../scripts/sim/lib/ledger.ts';
import { SEVERAL_AT_ONCE } from '../helpers/at-once.ts';
import { eventually, processTree, TestFleet } from '../helpers/fleet.ts';
import { statusOf } from '../helpers/host-status.ts';
import { SMALL, loaded, serverOf, startBatch, startFleet, untilDone, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { agentConfig, bridgeConfig } from './scale.ts';
import { pause } from '../../shared/abort.ts';

// But for one they mostly wait, and no bound of theirs is tight.
vi.setConfig(SEVERAL_AT_ONCE);

/** Long enough for the loop to be ended and started again. */
const HANG_MS = 8_000;
const never = new AbortController().signal;
const LOST =
  'Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU';
const NO_DRIVER =
  "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.";

/** The agent started anew as a service that is watched, with a `systemd-notify` that writes down what it is asked to say. */
class Watchdog {
  readonly #file: string;

  private constructor(file: string) {
    this.#file = file;
  }

  static async of(host: SimulatedHost): Promise<Watchdog> {
    const bin = join(host.directory, 'bin');
    await mkdir(bin);
    const watchdog = new Watchdog(join(host.directory, 'told'));
    await writeFile(join(bin, 'systemd-notify'), `#!/bin/sh\necho "$*" >> ${watchdog.#file}\n`, { mode: 0o755 });
    await host.stopAgent();
    host.env = { NOTIFY_SOCKET: '/nowhere', WATCHDOG_USEC: '3000000', PATH: bin };
    await host.startAgent();
    return watchdog;
  }

  /** How often the agent said that it lives. */
  fed(): number {
    return readFileSync(this.#file, 'utf8').split('WATCHDOG=1').length - 1;
  }
}

// How soon the API answers is judged, so nothing runs beside it.
describe.sequential('a driver that hangs', () => {
  fault('F34', 'nvidia-smi hangs and ignores SIGTERM', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const host = fleet.host('a');
    const watchdog = await Watchdog.of(host);
    await untilReady(fleet);
    row.injected();
    await host.breakNvidiaSmi({ mode: 'hang', ignoresTerm: true });
    const fedBefore = watchdog.fed();
    await row.sees('values stale-flagged', 10_000, async () => {
      return (await statusOf(host)).snapshot.gpus.every(({ health }) => health !== 'ok');
    });
    let most = 0;
    let slowestMs = 0;
    const endMs = performance.now() + HANG_MS;
    while (performance.now() < endMs) {
      most = Math.max(most, await countNvidiaSmi(host.pid));
      const stillMs = row.stoodStillMs();
      const { tookMs } = await statusOf(host);
      slowestMs = Math.max(slowestMs, tookMs - (row.stoodStillMs() - stillMs));
      await pause(50, never);
    }
    expect(slowestMs, 'ms until the API answers').toBeLessThan(1_000);
    row.holds(`API answers in ${Math.round(slowestMs)} ms at most`);
    // The loop and one question beside it; a stuck one is never asked a second time.
    expect(most, 'nvidia-smi processes at the same time').toBeLessThanOrEqual(2);
    row.holds(`${most} nvidia-smi at most`);
    await eventually('the watchdog is fed on', async () => watchdog.fed() > fedBefore + 2, 60_000);
    row.holds('watchdog unaffected');
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 2);
    await host.breakNvidiaSmi(undefined);
    await eventually(
      'readings come back',
      async () => (await statusOf(host)).snapshot.gpus[0]?.health === 'ok',
      30_000,
    );
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('works on as soon as it answers');
  });
});

describe('GPU and driver', () => {
  const FORMS: { form: string; fault: Record<string, unknown>; health: RegExp }[] = [
    { form: 'exit 9, no driver', fault: { mode: 'exit', code: 9, text: NO_DRIVER }, health: /unreadable|absent/ },
    { form: 'exit 15, GPU lost', fault: { mode: 'exit', code: 15, text: LOST }, health: /lost/ },
    { form: 'garbage', fault: { mode: 'garbage', bytes: 4_096 }, health: /unreadable/ },
    { form: '1 MB of output', fault: { mode: 'garbage', bytes: 1_200_000 }, health: /unreadable/ },
    { form: '[N/A] everywhere', fault: { mode: 'cells', text: '[N/A]' }, health: /unreadable/ },
  ];
  for (const { form, fault: how, health } of FORMS) {
    fault('F35', `nvidia-smi: ${form}`, async (row) => {
      await using fleet = await startFleet({ a: {} });
      await untilReady(fleet);
      const host = fleet.host('a');
      const { pid } = host;
      row.injected();
      await host.breakNvidiaSmi(how);
      const healths = async () => (await statusOf(host)).snapshot.gpus.map((gpu) => gpu.health);
      await row.sees('flagged', 10_000, async () => (await healths()).every((one) => one !== 'ok'));
      // A loop that talks nonsense is stale first, and given up only when no row has come for the time of `silence`, twice.
      await eventually('no GPU can be used', async () => (await healths()).every((one) => health.test(one)), 60_000);
      const bridge = await fleet.bridge(bridgeConfig());
      const refused = await bridge.call('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 2 });
      // Refused at once, or waiting for what may pass: either way it says why.
      expect(refused.json['status'] ?? 'refused', refused.text).not.toBe('success');
      expect(refused.text, refused.text).toMatch(/nvidia-smi|GPU/);
      expect(host.events('job-accepted'), 'no grants').toEqual([]);
      row.holds('no grants, and the caller is told why');
      await host.breakNvidiaSmi(undefined);
      await eventually(
        'readings come back',
        async () => (await statusOf(host)).snapshot.gpus[0]?.health === 'ok',
        60_000,
      );
      const id = await startBatch(bridge, 1);
      expect(await untilEnded(bridge, id)).toBe('success');
      expect(host.pid).toBe(pid);
      expect(host.events('defect')).toEqual([]);
      row.holds('no crash; works on when it answers again');
    });
  }

  fault('F35', 'nvidia-smi: missing', async (row) => {
    await using fleet = await TestFleet.start([{ name: 'a', models: {}, config: agentConfig() }]);
    const host = fleet.host('a');
    const program = join(fleet.directory, 'nvidia-smi');
    const { gpu } = agentConfig();
    row.injected();
    await host.configure({ klein: loaded() }, { gpu: { ...gpu, nvidia_smi: program } });
    await row.sees('seen', 10_000, async () => {
      return (await statusOf(host)).snapshot.problems?.some((text) => text.includes('was not found'));
    });
    const bridge = await fleet.bridge(bridgeConfig());
    const refused = await bridge.call('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 2 });
    expect(refused.json['status'] ?? 'error', refused.text).not.toBe('success');
    expect(host.events('job-accepted'), 'no grants').toEqual([]);
    row.holds('no grants, no crash');
    await symlink(resolve('dist/sim/nvidia-smi'), program);
    await untilReady(fleet);
    row.holds('works once it is installed');
  });

  fault('F36', 'GPU lost (Xid 79) mid-job', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    row.injected();
    await host.breakNvidiaSmi({ mode: 'exit', code: 15, text: LOST });
    process.kill(leader, 'SIGKILL');
    await row.sees('quarantined', 30_000, async () => {
      return (await statusOf(host)).snapshot.gpus.every(({ health }) => health === 'lost');
    });
    expect(await untilEnded(bridge, id)).toBe('success');
    const { snapshot } = await statusOf(host);
    expect(JSON.stringify([snapshot.problems, snapshot.models.map(({ detail, slots }) => [detail, slots])])).toMatch(
      /reboot/i,
    );
    row.holds('the text says reboot');
    const sent = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'saved' ? [line] : []));
    expect(sent.filter((line) => line.host === 'b').length).toBeGreaterThan(0);
    await expectHistory(fleet, id);
    row.holds('its job was done elsewhere');
  });

  fault('F37', 'CUDA out of memory at load', async (row) => {
    await using fleet = await startFleet({ a: { 'oom-at-load': true }, b: {} });
    const host = fleet.host('a');
    row.injected();
    await row.sees('failed for good', 5_000, async () => {
      return host.events('model-failed').find((event) => event['retry'] === 'never');
    });
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 3);
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    expect(host.events('model-loading'), 'no loop').toHaveLength(1);
    row.holds('one start, the other host does the work');
  });

  fault('F37', 'CUDA out of memory at generate', async (row) => {
    await using fleet = await startFleet({ a: { oom: 'exception', 'oom-at': 2 } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 4);
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('the job is done once, by a repeat');
  });

  fault('F37', 'CUDA out of memory at every generate', async (row) => {
    await using fleet = await startFleet({ a: { oom: 'die', 'oom-at': 1 } });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const answer = await bridge.call('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 45 });
    // Where programs start slowly a call does not wait for three servers.
    const { batch_id: id, status } = answer.json;
    if (status === 'running') expect(await untilEnded(bridge, String(id))).not.toBe('success');
    else expect(answer.isError, answer.text).toBe(true);
    expect(fleet.host('a').events('job-accepted').length).toBeLessThanOrEqual(3);
    expect(fleet.host('a').events('model-loading').length).toBeLessThanOrEqual(4);
    row.holds('3 attempts at most, then the reason');
  });

  fault('F37', 'a foreign process took the VRAM', async (row) => {
    await using fleet = await startFleet({ a: { klein: loaded({}, { preload: false }) } });
    const host = fleet.host('a');
    const hog = execa('sleep', ['1000'], { reject: false });
    try {
      await eventually('the hog runs', async () => hog.pid !== undefined && startTimeOf(hog.pid) !== undefined);
      const pid = hog.pid ?? 0;
      const [gpu] = new Ledger(host.ledger).gpus();
      new Ledger(host.ledger).note({
        pid,
        startTime: startTimeOf(pid) ?? '',
        gpuUuid: gpu?.uuid ?? '',
        usedMiB: 20_000,
        name: 'sleep',
      });
      await eventually('the agent sees it', async () => {
        const { gpus } = (await statusOf(host)).snapshot;
        return gpus[0]?.foreign.some((one) => one.pid === pid);
      });
      const bridge = await fleet.bridge(bridgeConfig());
      row.injected();
      const answer = await bridge.call('generate_image', {
        prompt: 'a fox',
        width: 256,
        height: 256,
        wait_seconds: 20,
      });
      const told = `${answer.text} ${JSON.stringify((await statusOf(host)).snapshot)}`;
      expect(told).toMatch(new RegExp(`sleep \\(pid ${pid}`));
      expect(host.events('job-accepted').length).toBeLessThanOrEqual(3);
      expect(host.events('model-loading')).toEqual([]);
      row.holds('refused with its pid and name; nothing is started in vain');
      expect(hog.exitCode, 'it was never touched').toBeNull();
      hog.kill();
      await hog;
      const again = await bridge.ask('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 45 });
      expect(again['status']).toBe('success');
      row.holds('done once it is gone');
    } finally {
      hog.kill('SIGKILL');
      await hog;
    }
  });
});

/** Processes called nvidia-smi below the agent. */
async function countNvidiaSmi(agentPid: number): Promise<number> {
  const pids = await processTree(agentPid);
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''))); // ended
  return lines.filter((line) => line.includes('nvidia-smi')).length;
}
