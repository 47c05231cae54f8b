import { build } from 'esbuild';
import { execa } from 'execa';
import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, vi } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { fetchBody } from '../../shared/http-client.ts';
import type { Params } from '../../shared/protocol.ts';
import { NOTIFICATIONS } from '../../shared/protocol.ts';
import { WsPeer } from '../agent/rpc/ws-peer.ts';
import { SEVERAL_AT_ONCE } from '../helpers/at-once.ts';
import type { DiskFault } from '../helpers/disk-faults.ts';
import { FaultyDisk, whyNoDiskFaults } from '../helpers/disk-faults.ts';
import type { TestFleet } from '../helpers/fleet.ts';
import { eventually } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';
import { MODEL, SMALL, startBatch, startFleet, untilDone, untilEnded, untilReady, untilRunning } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig } from './scale.ts';

// They mostly wait, and no bound of theirs is tight.
vi.setConfig(SEVERAL_AT_ONCE);

const cannot = await whyNoDiskFaults();
const KILLS = 200;
const AT_A_TIME = 2;

describe("the bridge's disk", () => {
  const FAULTS: { what: string; fault: Omit<DiskFault, 'path'>; id: string; says: RegExp }[] = [
    {
      id: 'F30',
      what: 'ENOSPC at save',
      fault: { mode: 'full', bytes: 10_000 },
      says: /out: [\d.]+ MiB free, [\d.]+ MiB needed/,
    },
    {
      id: 'F30',
      what: 'space runs low',
      fault: { mode: 'low', bytes: 100e6 },
      says: /out: 95 MiB free, 2\d\d MiB needed/,
    },
    {
      id: 'F32',
      what: 'not writable mid-batch',
      fault: { mode: 'denied' },
      says: /out cannot be written \(EACCES\)|saved in .*out \(EACCES\)/,
    },
    {
      id: 'F32',
      what: 'read-only mid-batch',
      fault: { mode: 'rofs' },
      says: /out cannot be written \(EROFS\)|saved in .*out \(EROFS\)/,
    },
  ];
  for (const { id, what, fault: wrong, says } of FAULTS) {
    fault(
      id,
      what,
      async (row) => {
        await using fleet = await startFleet({ a: {} });
        await untilReady(fleet);
        const disk = await FaultyDisk.make(fleet.directory);
        const bridge = await fleet.bridge(bridgeConfig(), 'laptop-disk', disk.env);
        const images = 16; // more than are made before the next look
        const batch = await startBatch(bridge, images);
        await untilDone(bridge, batch, 1);
        row.injected();
        await disk.break({ ...wrong, path: fleet.output });
        // Seen at the next save, or at the next look.
        await row.sees('paused, and says why', 30_000, async () => {
          const activity = await activityOf(bridge, batch);
          return activity.includes('paused: ') && says.test(activity) && activity;
        });
        const host = fleet.host('a');
        await eventually(
          'what runs has ended',
          async () => (await modelOf(host, 'klein')).slots[0]?.phase === 'idle',
          30_000,
        );
        await onlySavedFiles(fleet, batch, { isReadOnly: wrong.mode === 'rofs' });
        row.holds('no partial file visible');
        if (wrong.mode !== 'low') {
          expect((await statusOf(host)).jobs.map(({ state }) => state)).toContain('done');
          row.holds('not acknowledged: the host keeps the result');
        }
        const sent = (await manifestOf(fleet, batch)).filter(({ type }) => type === 'sent').length;
        expect(sent, 'jobs sent before the end').toBeLessThan(images);
        row.holds('no new work is sent');
        await disk.mend();
        expect(await untilEnded(bridge, batch)).toBe('success');
        await expectHistory(fleet, batch);
        row.holds('resumes by itself');
      },
      { cannot },
    );
  }

  fault('F32', 'output directory missing, read-only, full or not writable', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const disk = cannot === undefined ? await FaultyDisk.make(fleet.directory) : undefined;
    const bridge = await fleet.bridge(bridgeConfig(), 'laptop-disk', disk?.env);
    await bridge.ask('list_models'); // connected
    const refused = async (what: string, directory: string, says: RegExp): Promise<void> => {
      row.injected();
      const text = await row.sees(`${what}: refused`, 1_000, async () => {
        const asked = { ...SMALL, prompt: 'a fox', output_dir: directory };
        const answer = await bridge.call('generate_image', asked);
        return answer.isError && answer.text;
      });
      expect(text).toMatch(says);
      expect(text).toContain(directory);
    };
    const file = join(fleet.directory, 'file');
    await writeFile(file, '');
    await refused('missing, and a file in its way', file, /^PATH_DENIED: .* cannot be written \(EEXIST\)/);
    const locked = join(fleet.directory, 'locked');
    await mkdir(locked, { mode: 0o500 });
    // Root may write everywhere, so that where tests run as root the disk has to refuse.
    if (process.getuid?.() === 0) await disk?.break({ mode: 'denied', path: locked });
    if (process.getuid?.() !== 0 || disk !== undefined)
      await refused('not writable', locked, /^PATH_DENIED: .* cannot be written \(EACCES\)/);
    if (disk === undefined) row.holds(`read-only, full: not run: ${cannot}`);
    await disk?.break({ mode: 'rofs', path: fleet.output });
    if (disk) await refused('read-only', fleet.output, /^PATH_DENIED: .* cannot be written \(EROFS\)/);
    await disk?.break({ mode: 'full', path: fleet.output });
    if (disk) await refused('full', fleet.output, /^DISK_FULL: .* free, .* needed\. Nothing was generated\./);
    expect(fleet.host('a').events('job-accepted')).toEqual([]);
    row.holds('before anything was generated');
  });
});

describe("the agent's disk", () => {
  const FAULTS: { what: string; mode: DiskFault['mode'] }[] = [
    { what: 'ENOSPC at journal and results', mode: 'full' },
    { what: 'EIO on fsync of journal and results', mode: 'eio' },
  ];
  for (const { what, mode } of FAULTS) {
    fault(
      'F31',
      what,
      async (row) => {
        await using fleet = await startFleet({ a: {} });
        const host = fleet.host('a');
        const disk = await FaultyDisk.make(fleet.directory);
        await host.stopAgent();
        host.env = disk.env;
        await host.startAgent();
        await untilReady(fleet);
        const { pid } = host;
        const bridge = await fleet.bridge(bridgeConfig());
        const batch = await startBatch(bridge, 4);
        await untilDone(bridge, batch, 1);
        await untilRunning(host);
        row.injected();
        await disk.break({ mode, path: join(host.directory, 'state') });
        const reasons = await row.sees('/readyz red', 30_000, async () => {
          const { status, text } = await readyz(host);
          return status === 503 && text;
        });
        expect(reasons).toContain(join(host.directory, 'state'));
        const slot = await eventually('the slot cannot', async () => {
          const [first] = (await modelOf(host, 'klein')).slots;
          return first?.phase === 'cannot' ? first : undefined;
        });
        expect(slot.reason).toMatch(mode === 'full' ? /^Disk full: / : /^Disk failure \(EIO\): /);
        row.holds('no grants: cannot, with the reason');
        await disk.mend();
        expect(await untilEnded(bridge, batch)).toBe('success');
        await expectHistory(fleet, batch);
        row.holds('running ones not lost; goes on by itself');
        expect((await readyz(host)).status).toBe(200);
        expect([host.isRunning, host.pid]).toEqual([true, pid]);
        row.holds('no crash');
        const refusal = await takeWhile(host, () => disk.break({ mode, path: join(host.directory, 'state') }));
        await disk.mend();
        expect(refusal).toBe('DISK_FULL');
        row.holds('a take answers DISK_FULL');
      },
      { cannot },
    );
  }
});

describe('a process that is killed while it saves', () => {
  fault('F33', `SIGKILL at any byte of a save, ${KILLS} times`, async (row) => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-kills-'));
    try {
      const program = join(directory, 'save-loop.mjs');
      // Beside the packages that it imports, by their full path.
      await build({
        entryPoints: ['tests/faults/save-loop.ts'],
        outfile: program,
        bundle: true,
        platform: 'node',
        format: 'esm',
        target: 'node20.19',
        banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
        logLevel: 'error',
      });
      const workers = Array.from({ length: AT_A_TIME }, (_, at) => killOften(program, join(directory, `worker-${at}`)));
      const seen = await Promise.all(workers);
      const hits = seen.reduce((sum, { partsLeft }) => sum + partsLeft, 0);
      const files = seen.reduce((sum, { whole }) => sum + whole, 0);
      // A kill that hits no save proves nothing.
      expect(hits, 'kills that left a part').toBeGreaterThan(KILLS / 10);
      expect(files, 'whole files').toBeGreaterThan(KILLS / 10);
      expect(
        seen.flatMap(({ torn }) => torn),
        'torn files',
      ).toEqual([]);
      row.holds(`0 torn of ${files} files; ${hits} kills hit a save`);
      expect(
        seen.flatMap(({ notSwept }) => notSwept),
        'parts after the next start',
      ).toEqual([]);
      row.holds('parts swept at the next start');
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});

async function killOften(program: string, directory: string) {
  let partsLeft = 0;
  let sha256 = '';
  for (let kill = 0; kill < KILLS / AT_A_TIME; kill += 1) {
    const child = execa(process.execPath, [program, directory], { stdin: 'ignore', buffer: false, reject: false });
    const [hash] = (await once(child.stdout, 'data')) as [Buffer]; // a stream without an encoding gives buffers
    sha256 = hash.toString().trim();
    await delay(Math.random() * 40);
    child.kill('SIGKILL');
    await child;
    if ((await namesIn(directory)).some(isPart)) partsLeft += 1;
  }
  await execa(process.execPath, [program, directory, 'sweep']);
  const names = await namesIn(directory);
  const images = names.filter((name) => /\.(png|jpg)$/.test(name));
  const torn: string[] = [];
  for (const name of images) {
    const hash = createHash('sha256')
      .update(await readFile(join(directory, name)))
      .digest('hex');
    if (hash !== sha256) torn.push(name);
  }
  return { partsLeft, whole: images.length, torn, notSwept: names.filter(isPart) };
}

function isPart(name: string): boolean {
  return name.endsWith('.part');
}

async function namesIn(directory: string): Promise<string[]> {
  return await readdir(directory, { recursive: true });
}

async function activityOf(bridge: BridgeClient, id: string): Promise<string> {
  return String((await bridge.ask('get_job', { id, wait_seconds: 0 }))['activity']);
}

async function onlySavedFiles(fleet: TestFleet, id: string, { isReadOnly }: { isReadOnly: boolean }): Promise<void> {
  // The last image may still be on its way to its name: its job has left the slot by then.
  await eventually('every file is one that was saved', async () => {
    const saved = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'saved' ? [line.path] : []));
    const files = (await fleet.outputFiles()).map((name) => join(fleet.output, name));
    const hidden = isReadOnly ? await partsIn(fleet) : []; // nobody could remove it
    return files.every((path) => saved.includes(path) || hidden.includes(path));
  });
}

async function partsIn(fleet: TestFleet): Promise<string[]> {
  return (await fleet.outputFiles()).filter(isPart).map((name) => join(fleet.output, name));
}

async function readyz(host: SimulatedHost): Promise<{ status: number; text: string }> {
  const { status, body } = await fetchBody(`${host.url.replace('ws:', 'http:')}/readyz`, {
    headers: { authorization: `Bearer ${host.token}` },
    signal: new AbortController().signal,
    deadlineMs: 5_000,
    maxBytes: 100_000,
  });
  return { status, text: body.toString() };
}

/** Takes a slot that was granted just before `happens`; the code of the refusal. */
async function takeWhile(host: SimulatedHost, happens: () => Promise<void>): Promise<string | undefined> {
  await using peer = await WsPeer.hello({ port: Number(new URL(host.url).port) }, host.token);
  const line = { model: MODEL, class: 'batch', count: 1, workMs: 600, longestMs: 600, maxMegapixels: 0.1, inFlight: 0 };
  await peer.ask('job.offer', { lines: [line] });
  const grant = NOTIFICATIONS['slot.grant'].params.parse(await peer.until(() => peer.notifications('slot.grant')[0]));
  await happens();
  const take: Params<'job.take'> = {
    grantId: grant.grantId,
    job: {
      jobId: randomUUID(),
      attempt: 1,
      class: 'batch',
      request: {
        kind: 'generate',
        model: MODEL,
        prompt: 'a fox',
        steps: 4,
        guidance: { field: 'guidance_scale', value: 1 },
        seed: 7,
        format: 'png',
        width: 256,
        height: 256,
      },
    },
  };
  return (await peer.ask('job.take', take)).error?.data.code;
}
