import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { WeightsState } from '../../../agent/weights/weights.ts';
import { until } from '../model/model-host.ts';
import { WeightsHost } from './weights-host.ts';

const COMMIT = 'b'.repeat(40);

describe('a download', () => {
  test('shows bytes, rate and time left, ends on record, and sends the server offline', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { sim: { MIB: 24, MIB_PER_S: 8 } });
    expect(host.weights.stateOf(model).kind).toBe('absent');
    expect(host.weights.environment(model)).toEqual({});
    const seen = downloads(await host.pull(model));
    const done = seen.map(({ doneMiB }) => doneMiB);
    expect(done).toEqual([...done].sort((a, b) => a - b));
    expect(done.some((mib) => mib > 4 && mib < 20)).toBe(true);
    // 24 MiB are 25.2 MB in the words of the dry run.
    expect(seen.at(-1)?.totalMiB).toBeCloseTo(24, 0);
    expect(seen.at(-1)?.isEstimate).toBe(false);
    expect(seen.some(({ mibPerSecond, leftMs }) => mibPerSecond !== null && leftMs !== null)).toBe(true);
    expect(host.weights.stateOf(model)).toEqual({ kind: 'present' });
    expect(host.weights.environment(model)).toEqual({ HF_HUB_OFFLINE: '1' });
  });

  test('is not done again, neither now nor after a restart', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a');
    await host.pull(model);
    await host.pull(model);
    await host.restart();
    expect(host.weights.stateOf(model)).toEqual({ kind: 'present' });
    await host.pull(model);
    expect(host.count('weights-download')).toBe(1);
  });

  test('is done again where its files have gone, by half or wholly', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a');
    await host.pull(model);
    const blobs = join(host.home, 'hub/models--test--a/blobs');
    const [first = ''] = await readdir(blobs);
    await rm(join(blobs, first));
    await host.pull(model);
    expect(host.count('weights-damaged')).toBe(1);
    await rm(join(host.home, 'hub/models--test--a/snapshots'), { recursive: true });
    await host.restart();
    await until(() => host.weights.stateOf(model).kind === 'absent');
    await host.pull(model);
    expect(host.count('weights-download')).toBe(3);
    expect(host.weights.environment(model)).toEqual({ HF_HUB_OFFLINE: '1' });
  });

  test('is joined, and goes on when a caller leaves', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { sim: { MIB_PER_S: 16 } });
    const leaving = new AbortController();
    const left = host.weights.pull(model, leaving.signal);
    const stays = host.weights.pull(model, new AbortController().signal);
    await until(() => host.count('weights-download') === 1);
    leaving.abort(new Error('the caller has gone'));
    await expect(left).rejects.toThrow('the caller has gone');
    await stays;
    expect(host.count('weights-download')).toBe(1);
  });

  test('waits for another one, and says for which', async () => {
    await using host = await WeightsHost.start();
    const [a, b] = [host.model('a', { sim: { MIB_PER_S: 16 } }), host.model('b')];
    const first = host.pull(a);
    await until(() => host.weights.stateOf(a).kind === 'downloading');
    const second = await host.pull(b);
    await first;
    expect(second).toContainEqual({ kind: 'queued', behind: 'test/a' });
    expect(
      host.events.filter(({ event }) => /download|there/.test(event)).map(({ event, model }) => [event, model]),
    ).toEqual([
      ...[
        ['weights-download', 'a'],
        ['weights-there', 'a'],
      ],
      ...[
        ['weights-download', 'b'],
        ['weights-there', 'b'],
      ],
    ]);
  });

  test('of another revision is another one: both stay in the cache', async () => {
    await using host = await WeightsHost.start();
    const [a, b] = [host.model('a'), host.model('b', { id: `test/a@${COMMIT}` })];
    await host.pull(a);
    expect(host.weights.stateOf(b).kind).toBe('absent');
    const seen = downloads(await host.pull(b));
    // What the other revision has brought is no progress of this one.
    expect(seen[0]?.doneMiB).toBe(0);
    expect([host.weights.stateOf(a).kind, host.weights.stateOf(b).kind]).toEqual(['present', 'present']);
    expect(existsSync(join(host.home, 'hub/models--test--a/snapshots', COMMIT))).toBe(true);
  });

  test('ends with the agent, and an older downloader goes on where it was', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { sim: { MIB: 40, MIB_PER_S: 10, VERSION: 'old' } });
    const pulling = host.pull(model);
    await until(() => doneOf(host.weights.stateOf(model)) > 6);
    await host.restart();
    await expect(pulling).rejects.toThrow('What was downloaded so far is kept.');
    const before = await partialsIn(host);
    expect(before.length).toBe(2);
    const seen = downloads(await host.pull(host.model('a', { sim: { MIB: 40, MIB_PER_S: 200, VERSION: 'old' } })));
    expect(seen.find(({ doneMiB }) => doneMiB > 0)?.doneMiB).toBeGreaterThan(6);
    expect(await partialsIn(host)).toEqual([]);
  });

  test('leaves no parts that nobody goes on with', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a');
    const blobs = join(host.home, 'hub/models--test--a/blobs');
    await mkdir(blobs, { recursive: true });
    const [dead, recent, resumable] = ['0123abcd', '4567abcd', 'x'].map((part) =>
      join(blobs, `${'e'.repeat(64)}.${part}.incomplete`),
    );
    for (const path of [dead, recent, resumable]) await writeFile(path ?? '', 'part');
    for (const path of [dead, resumable]) await utimes(path ?? '', new Date(0), new Date(0));
    await host.pull(model);
    expect([dead, recent, resumable].map((path) => existsSync(path ?? ''))).toEqual([false, true, true]);
  });
});

describe('a failed download', () => {
  test.each([
    ['gated', 'new', /gated. Accept its licence at https:\/\/huggingface.co\/test\/a and set HF_TOKEN/],
    ['gated', 'old', /gated. Accept its licence at https:\/\/huggingface.co\/test\/a and set HF_TOKEN/],
    ['denied', 'new', /denied.*valid HF_TOKEN/],
    ['denied', 'old', /denied.*valid HF_TOKEN/],
    ['missing', 'new', /not found, or is private. Correct `model` of a/],
    ['missing', 'old', /not found, or is private. Correct `model` of a/],
    ['no-revision', 'new', /no such revision. Correct `revision` of a/],
    ['no-revision', 'old', /no such revision. Correct `revision` of a/],
  ])('%s (%s) is not tried again before a person asks', async (fault, version, words) => {
    await using host = await WeightsHost.start();
    const mark = join(host.directory, 'fault');
    await writeFile(mark, '');
    const model = host.model('a', { sim: { FAULT: fault, FAULT_FILE: mark, VERSION: version } });
    await expect(host.pull(model)).rejects.toThrow(words);
    expect(host.weights.stateOf(model)).toMatchObject({ kind: 'failed', retry: 'never' });
    expect(host.weights.isDue(model)).toBe(false);
    await rm(mark);
    await expect(host.pull(model)).rejects.toThrow(words);
    expect(host.count('weights-download')).toBe(1);
    await host.pull(model, { isAsked: true });
    expect(host.weights.stateOf(model).kind).toBe('present');
  });

  test.each(['new', 'old'])('without a network is tried again at a time (%s)', async (version) => {
    await using host = await WeightsHost.start({ retryFirstMs: 50 });
    const mark = join(host.directory, 'fault');
    await writeFile(mark, '');
    const model = host.model('a', { sim: { FAULT: 'offline', FAULT_FILE: mark, VERSION: version } });
    await expect(host.pull(model)).rejects.toThrow(/the hub cannot be reached/);
    expect(host.weights.stateOf(model)).toMatchObject({ kind: 'failed', problem: 'network' });
    await until(() => host.weights.isDue(model));
    await rm(mark);
    await host.pull(model);
  });

  test('that stands still is ended, said, and gone on with', async () => {
    await using host = await WeightsHost.start({ stallMs: 400, retryFirstMs: 10 });
    const mark = join(host.directory, 'fault');
    await writeFile(mark, '');
    const model = host.model('a', { sim: { FAULT: 'stall', FAULT_FILE: mark, VERSION: 'old' } });
    await expect(host.pull(model)).rejects.toThrow(/stood still for 1 s. What has arrived is kept./);
    await rm(mark);
    await until(() => host.weights.isDue(model));
    const seen = downloads(await host.pull(model));
    expect(seen.find(({ doneMiB }) => doneMiB > 0)?.doneMiB).toBeGreaterThanOrEqual(4);
  });

  test('by a full disk says what is needed, free and where, before and while it runs', async () => {
    let freeMiB = 20;
    await using host = await WeightsHost.start({ freeBytes: () => Promise.resolve(freeMiB * 1024 ** 2) });
    const model = host.model('a', { sim: { MIB: 24, MIB_PER_S: 12 } });
    await expect(host.pull(model)).rejects.toThrow(
      /need 24 MiB more, and .*hf home\/hub has 20 MiB free, of which 16 MiB stay free.*Make room there/,
    );
    expect(existsSync(join(host.home, 'hub/models--test--a'))).toBe(false);
    freeMiB = 60;
    const pulling = host.pull(model, { isAsked: true });
    await until(() => doneOf(host.weights.stateOf(model)) > 2);
    freeMiB = 3;
    await expect(pulling).rejects.toMatchObject({ code: 'DISK_FULL' });
    expect(host.weights.stateOf(model)).toMatchObject({ kind: 'failed', problem: 'disk-full' });
  });

  test('by a full disk, as the downloader tells it', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { sim: { FAULT: 'disk-full' } });
    await expect(host.pull(model)).rejects.toThrow(/The disk filled up/);
  });

  test('by a downloader that is killed', async () => {
    await using host = await WeightsHost.start();
    await expect(host.pull(host.model('a', { sim: { FAULT: 'crash' } }))).rejects.toThrow(/was ended by SIGKILL/);
  });

  test('of any other kind shows the end of the log', async () => {
    await using host = await WeightsHost.start();
    const argv = ['/bin/sh', '-c', 'echo "segmentation of the moon, token hf_abcdefghijkl"; exit 3'];
    const model = host.model('a', { launch: { download: argv } });
    await expect(host.pull(model)).rejects.toThrow(
      /ended with code 3.*\n.*segmentation of the moon, token hf_\[redacted\]/s,
    );
  });

  test('by a program that is not there names the setting', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { launch: { download: ['/nowhere/hf', 'download'] } });
    await expect(host.pull(model)).rejects.toThrow(/was not started: .*Check `download` of a/);
  });
});

describe('nothing is downloaded', () => {
  test('for a path, for `download: none`, for Step1X-Edit, for an attached server, and where the owner is offline', async () => {
    await using host = await WeightsHost.start();
    const local = join(host.directory, 'models/flux');
    await mkdir(local, { recursive: true });
    const models = [
      host.model('a', { id: local }),
      host.model('b', { id: 'models/flux', launch: { cwd: host.directory } }),
      host.model('c', { launch: { download: 'none' } }),
      host.model('d', { engine: 'step1x-edit' }),
      { ...host.model('e'), launch: { kind: 'attached' as const, url: 'http://127.0.0.1:1' } },
      host.model('f', { env: { HF_HUB_OFFLINE: '1' } }),
    ];
    for (const model of models) {
      expect(host.weights.stateOf(model)).toEqual({ kind: 'present' });
      await host.pull(model);
      expect(host.weights.environment(model)).toEqual({});
    }
    expect(host.events).toEqual([]);
  });

  test('where there is no downloader: one warning, and the engine does it', async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { env: { PATH: '/nowhere' }, launch: { command: ['/bin/true'] } });
    await host.pull(model);
    await host.pull(model);
    expect(host.weights.stateOf(model).kind).toBe('present');
    expect(host.weights.isLeftToEngine(model)).toBe(true);
    expect(host.weights.environment(model)).toEqual({});
    expect(host.count('weights-left-to-engine')).toBe(1);
  });

  test('on the word of an old downloader without a network: what is there in part is left to the engine', async () => {
    await using host = await WeightsHost.start();
    const mark = join(host.directory, 'fault');
    const slow = host.model('a', { sim: { MIB: 20, MIB_PER_S: 5, VERSION: 'old' } });
    const pulling = host.pull(slow);
    await until(() => doneOf(host.weights.stateOf(slow)) > 1);
    await host.restart();
    await expect(pulling).rejects.toThrow();
    await writeFile(mark, '');
    const model = host.model('a', { sim: { MIB: 20, VERSION: 'old', FAULT: 'offline', FAULT_FILE: mark } });
    await host.pull(model);
    expect(host.weights.environment(model)).toEqual({});
    expect(host.count('weights-doubtful')).toBe(1);
  });
});

describe('the cache', () => {
  test("is that of the model's own environment, and one there is not one elsewhere", async () => {
    await using host = await WeightsHost.start();
    await host.pull(host.model('a'));
    const elsewhere = host.model('a', { env: { HF_HOME: join(host.directory, 'other') } });
    expect(host.weights.stateOf(elsewhere).kind).toBe('absent');
    await host.pull(elsewhere);
    expect(existsSync(join(host.directory, 'other/hub/models--test--a/refs/main'))).toBe(true);
  });

  test("is the engine's --download-dir where it has one", async () => {
    await using host = await WeightsHost.start();
    const model = host.model('a', { launch: { args: ['--download-dir', join(host.directory, 'elsewhere')] } });
    await host.pull(model);
    expect(existsSync(join(host.directory, 'elsewhere/models--test--a/refs/main'))).toBe(true);
    expect(host.weights.environment(model)).toEqual({ HF_HUB_OFFLINE: '1' });
  });
});

describe('the program', () => {
  test('is beside the engine behind a link, and gets the repository, the revision and the token', async () => {
    await using host = await WeightsHost.start();
    const bin = join(host.directory, 'bin');
    await mkdir(bin);
    await symlink(resolve('dist/sim/vllm-omni'), join(bin, 'vllm'));
    const model = host.model('a', {
      id: `test/a@${COMMIT}`,
      launch: { command: ['vllm', 'serve'] },
      env: { PATH: `${bin}:/usr/bin:/bin:${nodeDir()}` },
    });
    await host.pull(model);
    expect(host.weights.environment(model)).toEqual({ HF_HUB_OFFLINE: '1' });
  });

  test('of agent.yaml gets the repository and the revision behind its own words', async () => {
    await using host = await WeightsHost.start();
    const out = join(host.directory, 'asked');
    const argv = ['/bin/sh', '-c', 'echo "$HF_TOKEN $@" > "$0"', out, 'mirror'];
    const model = host.model('a', { id: `test/a@${COMMIT}`, env: { HF_TOKEN: 'secret' }, launch: { download: argv } });
    await host.pull(model);
    expect(await readFile(out, 'utf8')).toBe(`secret mirror test/a --revision ${COMMIT}\n`);
    expect(host.weights.stateOf(model).kind).toBe('present');
    expect(host.weights.environment(model)).toEqual({});
  });

  test('is modelscope where the engine uses it', async () => {
    await using host = await WeightsHost.start();
    const bin = join(host.directory, 'bin');
    const cache = join(host.directory, 'ms');
    await mkdir(bin);
    const script = `#!/bin/sh\nmkdir -p "${cache}/models/test--a/snapshots/master"; echo "$@" > "${cache}/models/test--a/snapshots/master/asked"\n`;
    await writeFile(join(bin, 'modelscope'), script, { mode: 0o755 });
    const env = { VLLM_USE_MODELSCOPE: 'True', MODELSCOPE_CACHE: cache, PATH: `${bin}:/usr/bin:/bin` };
    const model = host.model('a', { env, launch: { command: ['/bin/true'] } });
    await host.pull(model);
    expect(await readFile(join(cache, 'models/test--a/snapshots/master/asked'), 'utf8')).toBe(
      'download --model test/a\n',
    );
    expect(host.weights.stateOf(model).kind).toBe('present');
  });
});

test('what another program has downloaded meanwhile is seen', async () => {
  await using host = await WeightsHost.start();
  await using other = await WeightsHost.start({ stateDir: host.directory });
  const model = host.model('a');
  expect(host.weights.stateOf(model).kind).toBe('absent');
  await other.pull(model);
  await until(() => host.weights.stateOf(model).kind === 'present');
});

/** Once the first look at the cache is done. */
function downloads(states: readonly WeightsState[]) {
  return states.flatMap((state) => (state.kind === 'downloading' && state.totalMiB !== null ? [state] : []));
}

function doneOf(state: WeightsState): number {
  return state.kind === 'downloading' ? state.doneMiB : 0;
}

async function partialsIn(host: WeightsHost): Promise<string[]> {
  const names = await readdir(join(host.home, 'hub/models--test--a/blobs'));
  return names.filter((name) => name.endsWith('.incomplete'));
}

function nodeDir(): string {
  return join(process.execPath, '..');
}
