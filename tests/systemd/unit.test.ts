import { execa } from 'execa';
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

/** 0 is a program without any rights, 10 one that may do everything. */
const BAR = 3.0;
const UNIT = resolve('systemd/gantry-agent.service');
const cannot = (await execa('systemd-analyze', ['--version'], { reject: false })).exitCode !== 0;
if (cannot) process.stdout.write('systemd unit: not verified, this machine has no systemd-analyze\n');

let dir: string;
let copy: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-unit-'));
  copy = join(dir, 'gantry-agent.service');
  // The program need not be installed where this runs.
  await writeFile(copy, (await readFile(UNIT, 'utf8')).replaceAll('/usr/bin/gantry-agent', '/usr/bin/true'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

describe.skipIf(cannot)('the systemd unit', { timeout: 60_000 }, () => {
  test('is one that systemd understands in every line', async () => {
    const { exitCode, all } = await execa('systemd-analyze', ['verify', copy], { all: true, reject: false });
    expect(all).toBe('');
    expect(exitCode).toBe(0);
  });

  test.each(['devices.conf', 'offline.conf'])('so is its drop-in %s', async (name) => {
    const beside = `${copy}.d`;
    await mkdir(beside, { recursive: true });
    await copyFile(resolve('systemd/drop-ins', name), join(beside, name));
    const { exitCode, all } = await execa('systemd-analyze', ['verify', copy], { all: true, reject: false });
    await rm(beside, { recursive: true });
    expect(all).toBe('');
    expect(exitCode).toBe(0);
  });

  test(`exposes ${BAR} or less`, async () => {
    const { stdout } = await execa('systemd-analyze', ['--offline=yes', '--no-pager', 'security', copy]);
    const level = Number(/Overall exposure level for [^:]+: ([\d.]+)/.exec(stdout)?.[1]);
    expect(level).toBeGreaterThan(0);
    expect(level).toBeLessThanOrEqual(BAR);
  });
});

describe('the systemd unit', () => {
  test('lets GPUs, compilers and control groups be', async () => {
    const settings = await settingsOf(UNIT);
    const breaking = ['PrivateDevices', 'ProtectClock', 'MemoryDenyWriteExecute', 'ProtectControlGroups', 'ProcSubset'];
    for (const name of [...breaking, 'ProtectProc', 'SupplementaryGroups', 'DynamicUser']) {
      expect([undefined, 'no'], name).toContain(settings.get(name));
    }
  });

  // The bar above lets each of these go by itself, and some it does not look at.
  test.each([
    ['NoNewPrivileges', 'yes', 'no program that it starts gets more rights than it has'],
    ['ProtectSystem', 'strict', 'it writes nowhere but in its own directories'],
    ['ProtectHome', 'yes', 'it sees no home directory'],
    ['PrivateTmp', 'yes', 'nor what others have in /tmp'],
    ['ProtectKernelTunables', 'yes', 'it changes no setting of the kernel'],
    ['ProtectKernelModules', 'yes', 'and loads no module'],
    ['ProtectKernelLogs', 'yes', 'and reads no log of it'],
    ['RestrictSUIDSGID', 'yes', 'it leaves no set-uid file behind'],
    ['SystemCallArchitectures', 'native', 'the filter of system calls has no way around it'],
    ['UMask', '0077', 'what it writes is its own'],
    ['StateDirectoryMode', '0700', 'tokens and pictures are closed to others by the directory, too'],
    ['LimitCORE', '0', 'a crash leaves no memory with tokens and prompts on the disk'],
    ['RestartPreventExitStatus', '78', 'a wrong configuration does not loop'],
    ['OOMPolicy', 'continue', 'a server that the kernel ends does not take the agent along'],
    ['Delegate', 'yes', 'each server gets a control group of its own'],
    ['WatchdogSec', '120', 'a loop that hangs is noticed'],
    ['NotifyAccess', 'all', 'systemd-notify, a child, is heard'],
    ['LimitNOFILE', '65536', 'vLLM has the files that it wants'],
  ])('%s=%s: %s', async (name, value) => {
    expect((await settingsOf(UNIT)).get(name)).toBe(value);
  });

  test('gives the end of the agent more time than it takes: 30 s for jobs and 60 s for servers', async () => {
    const settings = await settingsOf(UNIT);
    expect(Number(settings.get('TimeoutStopSec'))).toBeGreaterThan(30 + 60);
    expect(settings.get('KillMode')).toBe('mixed');
  });

  test('starts the program by its own first line, which has the flags of its V8', async () => {
    expect((await settingsOf(UNIT)).get('ExecStart')).toBe('/usr/bin/gantry-agent run');
    const [first] = (await readFile('dist/gantry-agent.mjs', 'utf8')).split('\n', 1);
    expect(first).toBe('#!/usr/bin/env -S node --optimize-for-size');
  });
});

async function settingsOf(path: string): Promise<Map<string, string>> {
  const lines = (await readFile(path, 'utf8')).split('\n').filter((line) => /^[A-Z]\w*=/.test(line));
  return new Map(lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}
