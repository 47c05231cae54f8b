import { existsSync, readFileSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { takeServiceSettings } from '../../agent/config.ts';
import { ServiceNotify } from '../../agent/service-notify.ts';
import { serviceStatus } from '../../agent/service-status.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import { eventually } from '../helpers/fleet.ts';
import { eventLog } from './model/life-stage.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-notify-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

describe('what the service manager said', () => {
  test('is taken out of the environment, so that no child can speak in the name of the agent', () => {
    const env = {
      ...{ NOTIFY_SOCKET: '/run/systemd/notify', WATCHDOG_USEC: '120000000', WATCHDOG_PID: '7' },
      ...{ SYSTEMD_EXEC_PID: '7', PATH: '/bin' },
    };
    const settings = takeServiceSettings(env, 7);
    expect(settings).toEqual({
      notifySocket: '/run/systemd/notify',
      watchdogMs: 120_000,
      isUnit: true,
      path: '/bin',
    });
    expect(env).toEqual({ PATH: '/bin' });
  });

  test('counts only where this process is meant', () => {
    const inherited = takeServiceSettings({ WATCHDOG_USEC: '1000', WATCHDOG_PID: '7', SYSTEMD_EXEC_PID: '7' }, 8);
    expect(inherited).toMatchObject({ notifySocket: undefined, watchdogMs: undefined, isUnit: false });
    expect(takeServiceSettings({ WATCHDOG_USEC: '1000' }, 8).watchdogMs).toBe(1);
  });
});

describe('systemd is told', { timeout: 30_000 }, () => {
  test('that the agent is ready, then signs of life and each change of the status once, then the stop', async () => {
    const told = await recorder();
    let status = 'no GPU\n,  yet';
    const notify = new ServiceNotify({ ...told.options, watchdogMs: 150, status: () => status, log: eventLog().log });
    expect(told.messages()).toEqual([]);
    await notify.ready();
    expect(told.messages()).toEqual(['READY=1 WATCHDOG=1 STATUS=no GPU , yet']);
    await eventually('fed', () => Promise.resolve(told.messages().includes('WATCHDOG=1')));
    status = '1 GPU';
    await eventually('changed', () => Promise.resolve(told.messages().some((line) => /\bSTATUS=1 GPU$/.test(line))));
    await notify.stopping();
    await notify[Symbol.asyncDispose]();
    const all = told.messages();
    expect(all.filter((line) => line.includes('STATUS=1 GPU'))).toHaveLength(1);
    expect(all.some((line) => line.startsWith('STOPPING=1 STATUS=stopping'))).toBe(true);
    expect(told.sockets()).toEqual(['/run/x']);
  });

  test('without a watchdog nothing is said while nothing changes', async () => {
    const told = await recorder();
    await using notify = new ServiceNotify({
      ...{ ...told.options, watchdogMs: undefined, status: () => 'same' },
      log: eventLog().log,
    });
    await notify.ready();
    expect(told.messages()).toEqual(['READY=1 STATUS=same']);
  });

  test('nothing where there is no service manager', async () => {
    const told = await recorder();
    await using notify = new ServiceNotify({
      ...{ ...told.options, notifySocket: undefined, watchdogMs: 3, status: () => 'same' },
      log: eventLog().log,
    });
    await notify.ready();
    await notify.stopping();
    expect(told.messages()).toEqual([]);
  });

  test('a message that fails is logged once, sent again, and stops nothing', async () => {
    const { log, events } = eventLog();
    await using notify = new ServiceNotify({
      ...{ notifySocket: '/run/x', path: join(dir, 'empty'), watchdogMs: 30, status: () => 'same', log },
    });
    await notify.ready();
    const told = await recorder(join(dir, 'empty'));
    await eventually('arrived', () => Promise.resolve(told.messages().includes('WATCHDOG=1 STATUS=same')));
    expect(events.filter(({ event }) => event === 'systemd-not-told')).toHaveLength(1);
  });
});

describe('the line of `systemctl status`', () => {
  const GPU = { index: 0, uuid: 'GPU-0', name: 'L4', totalMiB: 1, usedMiB: 0, freeMiB: 1, oursMiB: 0 };
  const model = (alias: string, state: string, phase = 'idle') => ({
    ...{ alias, model: alias, state, slots: [{ slotId: alias, phase }] },
  });
  test.each([
    ['2 GPUs, qwen-image ready, 1 running', { gpus: [GPU, GPU], models: [model('qwen-image', 'ready', 'running')] }],
    ['1 GPU, no model loaded', { gpus: [GPU], models: [model('a', 'released')] }],
    ['draining, 0 GPUs, no model loaded, No GPU can be read.', { isDraining: true, problems: ['No GPU can be read.'] }],
    [
      '1 GPU, a ready, b ready, c ready, d ready, 1 more',
      { gpus: [GPU], models: ['a', 'b', 'c', 'd', 'e'].map((alias) => model(alias, 'ready')) },
    ],
  ])('%s', (line, facts) => {
    const snapshot = { gpus: [], models: [], problems: [], isDraining: false, ...facts };
    expect(serviceStatus(snapshot as unknown as HostSnapshot)).toBe(line); // what the line is made of, and no more
  });
});

/** A `systemd-notify` that writes down what it is asked to say. */
async function recorder(bin = dir) {
  const file = join(dir, 'told');
  await mkdir(bin, { recursive: true });
  const script = `#!/bin/sh\necho "$*" >> ${file}\necho "$NOTIFY_SOCKET" >> ${file}.sockets\n`;
  await writeFile(join(bin, 'systemd-notify.new'), script);
  await chmod(join(bin, 'systemd-notify.new'), 0o755);
  await rename(join(bin, 'systemd-notify.new'), join(bin, 'systemd-notify'));
  const lines = (path: string): string[] =>
    existsSync(path) ? readFileSync(path, 'utf8').split('\n').filter(Boolean) : [];
  return {
    options: { notifySocket: '/run/x', path: `${bin}:/usr/bin:/bin` },
    messages: () => lines(file),
    sockets: () => [...new Set(lines(`${file}.sockets`))],
  };
}
