import { accessSync, constants, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { describe, expect, test, vi } from 'vitest';
import { type LedgerGpu, startTimeOf } from '../../../scripts/sim/lib/ledger.ts';
import { pause } from '../../../shared/abort.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { never, Stage } from './stage.ts';
import { INSTANCES } from '../model/simulated-gpus.ts';

vi.setConfig({ testTimeout: 40_000, ...SEVERAL_AT_ONCE });

const gpu = (index: number): LedgerGpu => ({ uuid: `GPU-${index}`, index, name: 'Simulated H100', totalMiB: 80_000 });
const TWO = [gpu(0), gpu(1)];
const FREEZER = '/sys/fs/cgroup/freezer';
/** Nothing but a hanging driver makes D state; this is the closest double, and needs root and cgroup v1. */
const CAN_FREEZE = canFreeze();

/** A tick of the loop, for ever. */
const forever = (name: string): string => `while cat "$GOLDEN/${name}"; do sleep 0.05; done`;

describe('one lost GPU', () => {
  test('in mid-stream is the only one that is lost, and says reboot', async () => {
    await using stage = await Stage.simulated([...TWO, gpu(2)]);
    await stage.until(() => stage.healths() === 'ok,ok,ok');
    await stage.fault({ mode: 'lost', index: 1 });
    await stage.until(() => stage.healths() === 'ok,lost,ok');
    const [, lost] = stage.sampler.readings();
    expect(lost).toMatchObject({ uuid: 'GPU-1', freeMiB: null, usedMiB: null, totalMiB: 80_000 });
    expect(lost?.note).toMatch(/GPU 1 is lost: .*[Rr]eboot/);
    expect(stage.sampler.problem).toBeUndefined();
    // The living are asked without it, for their processes too, which it would spoil as well.
    expect((await stage.sampler.sampleNow(never)).map(({ health }) => health)).toEqual(['ok', 'lost', 'ok']);
    await expect(stage.sampler.computeApps(never)).resolves.toEqual([]);
    const before = stage.sampler.readings()[0]?.ageMs ?? 0;
    await stage.until(() => (stage.sampler.readings()[0]?.ageMs ?? before) < 100);
  });

  test.each([
    ['the list of GPUs', undefined],
    ['their indices, where the list fails too', 'list'],
  ] as const)('at the very first sample: the living are found by %s', async (_, broken) => {
    await using stage = await Stage.simulated([...TWO, gpu(2)], { fault: { mode: 'lost', index: 1 } });
    if (broken === 'list') {
      // The loop has seen no GPU by then, and fails on.
      const real = (await stage.read('nvidia-smi')).split('\n').slice(1).join('\n');
      await stage.install(`case "$*" in -L) echo 'GPU is lost.'; exit 15 ;; esac\n${real}`);
    }
    await stage.until(() => stage.healths() === 'ok,lost,ok');
    expect(stage.sampler.readings()[1]).toMatchObject({ index: 1, totalMiB: null, freeMiB: null });
    expect(stage.sampler.readings()[1]?.note).toMatch(/[Rr]eboot/);
  });

  test('at the very first sample of an old driver, which does not know all fields', async () => {
    const fields = `case "$*" in *mig.mode*|*timestamp*) cat "$GOLDEN/unknown-field.txt"; exit 2 ;; esac`;
    const alone = `case "$*" in *" -i GPU-0c5b"*-lms*) ${fields}; ${forever('minimal.csv')} ;; *" -i GPU-0c5b"*) ${fields}; cat "$GOLDEN/minimal.csv"; exit ;; esac`;
    const list = `case "$*" in -L) sed s/GPU-8f6a/GPU-0c5b/ "$GOLDEN/list-one-lost.txt"; exit 15 ;; esac`;
    await using stage = await Stage.open(`${alone}\n${list}\ncat "$GOLDEN/lost.txt"; exit 15`);
    await stage.until(() => stage.healths() === 'ok,lost');
    expect(stage.sampler.readings()[0]).toMatchObject({ name: 'Tesla K80', freeMiB: 11_441 });
  });

  test('is used again only when it has answered for a while', async () => {
    await using stage = await Stage.simulated(TWO, { sampleIntervalMs: 20 });
    await stage.until(() => stage.healths() === 'ok,ok');
    await stage.fault({ mode: 'lost', index: 1 });
    await stage.until(() => stage.healths() === 'ok,lost');
    const backMs = performance.now();
    await stage.fault(undefined);
    await stage.until(() => stage.sampler.readings()[1]?.note?.includes('answers again') === true);
    expect(stage.healths()).toBe('ok,lost');
    await stage.until(() => stage.healths() === 'ok,ok');
    expect(performance.now() - backMs).toBeGreaterThan(60 * 20);
    // The loop asks for it again: its values are new ones.
    await stage.until(() => (stage.sampler.readings()[1]?.ageMs ?? Infinity) < 100);
  });

  test('that nobody has ever seen becomes itself when it answers', async () => {
    await using stage = await Stage.simulated(TWO, { fault: { mode: 'lost', index: 1 }, sampleIntervalMs: 20 });
    await stage.until(() => stage.healths() === 'ok,lost');
    expect(stage.sampler.readings()[1]?.uuid).toBe('lost-0000:02:00.0');
    await stage.fault(undefined);
    await stage.until(() => stage.healths() === 'ok,ok');
    expect(stage.sampler.readings().map(({ uuid }) => uuid)).toEqual(['GPU-0', 'GPU-1']);
  });

  test('of one is a host without a GPU that can be used, until it comes back', async () => {
    await using stage = await Stage.simulated([gpu(0)], { sampleIntervalMs: 20 });
    await stage.until(() => stage.healths() === 'ok');
    await stage.fault({ mode: 'lost', index: 0 });
    await stage.until(() => stage.healths() === 'lost');
    expect(stage.sampler.problem).toMatchObject({
      health: 'lost',
      reason: expect.stringMatching(/[Rr]eboot/) as string,
    });
    await expect(stage.sampler.sampleNow(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
    await stage.fault(undefined);
    await stage.until(() => stage.healths() === 'ok');
    expect(stage.sampler.problem).toBeUndefined();
  });

  test.each(['lost-in-cells.csv', 'lost-between-rows.csv'])('is told by %s, while the other goes on', async (name) => {
    await using stage = await Stage.open(`cat "$GOLDEN/two-h100.csv"; sleep 0.2; ${forever(name)}`);
    await stage.until(() => stage.healths() === 'ok,lost');
    await stage.until(() => (stage.sampler.readings()[0]?.ageMs ?? Infinity) < 1_000);
  });
});

describe('a driver that hangs', () => {
  test('while it ignores SIGTERM: stale, then unreadable; never more than one query; answers at once', async () => {
    await using stage = await Stage.simulated(TWO, { silenceMs: 1_200, queryTimeoutMs: 500 });
    await stage.until(() => stage.healths() === 'ok,ok');
    await stage.fault({ mode: 'hang', ignoresTerm: true });
    await stage.until(() => stage.healths() === 'stale,stale');
    const askedMs = performance.now();
    await expect(stage.sampler.sampleNow(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
    expect(performance.now() - askedMs).toBeLessThan(20_000);
    await stage.until(() => stage.healths() === 'unreadable,unreadable');
    expect(stage.sampler.problem?.reason).toMatch(/nothing for 1200 ms/);
    const readMs = performance.now();
    stage.sampler.readings();
    expect(performance.now() - readMs).toBeLessThan(1_000);
    await stage.fault(undefined);
    await stage.until(() => stage.healths() === 'ok,ok');
  });

  test('one that is stopped is ended by SIGKILL, and replaced', async () => {
    const loop = `case "$*" in *-lms*) ;; *) exit 9 ;; esac\necho $$ >> "$DIR/pids"\n${forever('two-h100.csv')}`;
    await using stage = await Stage.open(loop, { silenceMs: 1_200 });
    await stage.until(() => stage.healths() === 'ok,ok');
    process.kill(Number((await stage.read('pids')).trim()), 'SIGSTOP');
    await stage.until(() => stage.healths() === 'stale,stale');
    await stage.until(
      async () => (await stage.read('pids')).trim().split('\n').length === 2 && stage.healths() === 'ok,ok',
    );
  });

  test.skipIf(!CAN_FREEZE)('one in D state is left alone, and no other is started beside it', async () => {
    using freezer = new Freezer();
    const loop = `case "$*" in *-lms*) ;; *) exit 9 ;; esac\necho $$ >> "$DIR/pids"\n${forever('two-h100.csv')}`;
    await using stage = await Stage.open(loop, { silenceMs: 1_000 });
    await stage.until(() => stage.healths() === 'ok,ok');
    freezer.freeze(Number((await stage.read('pids')).trim()));
    await stage.until(() => stage.healths() === 'unreadable,unreadable');
    expect(stage.sampler.problem?.reason).toMatch(/hangs in the GPU driver; restart the host/);
    const askedMs = performance.now();
    await expect(stage.sampler.sampleNow(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
    await expect(stage.sampler.computeApps(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
    expect(performance.now() - askedMs).toBeLessThan(20_000);
    await pause(1_500, never);
    expect((await stage.read('pids')).trim().split('\n')).toHaveLength(1);
    freezer.thaw();
    await stage.until(() => stage.healths() === 'ok,ok');
  });

  test('its processes are not listed, and its memory is not taken from a list cut short', async () => {
    await using stage = await Stage.simulated(TWO);
    await stage.until(() => stage.healths() === 'ok,ok');
    stage.ledger.note({
      pid: process.pid,
      startTime: startTimeOf(process.pid) ?? '',
      gpuUuid: 'GPU-0',
      usedMiB: 100,
      name: 'me',
    });
    await expect(stage.sampler.computeApps(never)).resolves.toMatchObject([{ usedMiB: 100, name: 'me' }]);
    for (const mode of ['half', 'silent', 'garbage'] as const) {
      await stage.fault(mode === 'garbage' ? { mode, bytes: 5_000, only: 'apps' } : { mode, only: 'apps' });
      const apps = stage.sampler.computeApps(never);
      if (mode === 'silent') await expect(apps).resolves.toEqual([]);
      else await expect(apps).rejects.toMatchObject({ code: 'GPU_LOST' });
    }
  });
});

describe('what nvidia-smi may print instead of values', () => {
  test.each([
    ['memory-unknown-error.csv', 'unreadable'],
    ['memory-no-permission.csv', 'unreadable'],
    ['memory-not-available.csv', 'unreadable'],
    ['memory-wddm.csv', 'unreadable'],
    ['requires-reset.csv', 'lost'],
  ])('%s makes the GPU %s, with a reason', async (name, health) => {
    await using stage = await Stage.open(forever(name));
    await stage.sampler.firstSample(never);
    expect(stage.sampler.readings()).toMatchObject([{ health, freeMiB: null }]);
    expect(stage.sampler.problem).toMatchObject({ health });
  });

  test.each(['unified-gb10.csv', 'unified-thor.csv', 'unified-n1x.csv'])(
    '%s has the memory of the host',
    async (name) => {
      await using stage = await Stage.open(forever(name));
      await stage.sampler.firstSample(never);
      const [reading] = stage.sampler.readings();
      expect(reading).toMatchObject({ isUnified: true, health: 'ok' });
      expect(reading?.totalMiB).not.toBe(8_128);
      expect(reading?.freeMiB).toBeLessThanOrEqual(reading?.totalMiB ?? 0);
    },
  );

  test('an integrated device that is lost has no memory at all', async () => {
    const line = `echo '2026/11/20 23:36:01.123, 0, GPU-0c5b, NVIDIA GB10, 00000000:01:00.0, [GPU is lost], [GPU is lost], [GPU is lost], 3, 41, 4.66, [N/A]'`;
    await using stage = await Stage.open(`while ${line}; do sleep 0.05; done`);
    await stage.sampler.firstSample(never);
    expect(stage.sampler.readings()).toMatchObject([{ health: 'lost', freeMiB: null, totalMiB: null }]);
  });

  test('exit 14 is a warning: the values count, in the loop and alone', async () => {
    const alone = `case "$*" in *-lms*) ;; *) cat "$GOLDEN/inforom.csv"; exit 14 ;; esac`;
    await using stage = await Stage.open(`${alone}\ncat "$GOLDEN/inforom.csv"; sleep 0.1; exit 14`, {
      sampleIntervalMs: 200,
    });
    await stage.sampler.firstSample(never);
    expect(stage.healths()).toBe('ok');
    expect(await stage.sampler.sampleNow(never)).toMatchObject([{ freeMiB: 23_050, health: 'ok' }]);
  });

  test.each([
    ['more than 1 MiB', `yes garbage | head -c 3000000; exit 0`],
    ['random bytes', `head -c 100000 /dev/urandom; exit 0`],
    ['half a line', `head -c 60 "$GOLDEN/one-rtx4090.csv"; exit 0`],
    ['nothing', `exit 0`],
  ])('%s is no reading, and no crash', async (_, script) => {
    await using stage = await Stage.open(script);
    await stage.sampler.firstSample(never);
    expect(stage.sampler.readings()).toEqual([]);
    expect(stage.sampler.problem?.health).toBe('unreadable');
    await expect(stage.sampler.sampleNow(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
  });

  test('garbage between the values does not spoil them', async () => {
    await using stage = await Stage.open(
      `while head -c 3000 /dev/urandom; echo; cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done`,
    );
    await stage.until(() => stage.healths() === 'ok,ok');
    await pause(300, never);
    expect(stage.healths()).toBe('ok,ok');
    expect(stage.sampler.readings()).toHaveLength(2);
  });
});

describe('a GPU cut into instances', () => {
  test('is its instances, beside one that is not', async () => {
    await using stage = await Stage.simulated([{ ...gpu(0), mig: INSTANCES }, gpu(1)]);
    await stage.until(() => stage.sampler.readings().length === 3); // `-L` is asked again where it did not answer in time
    expect(stage.sampler.readings().map(({ uuid, totalMiB }) => [uuid, totalMiB])).toEqual([
      ['MIG-a', 12_000],
      ['MIG-b', 12_000],
      ['GPU-1', 80_000],
    ]);
    const entry = { pid: process.pid, startTime: startTimeOf(process.pid) ?? '', usedMiB: 3_000, name: 'me' };
    stage.ledger.note({ ...entry, gpuUuid: 'MIG-b' });
    stage.ledger.note({ ...entry, gpuUuid: 'GPU-1' });
    const readings = await stage.sampler.sampleNow(never);
    expect(readings.map(({ freeMiB }) => freeMiB)).toEqual([12_000, 9_000, 76_440]);
    const apps = await stage.sampler.computeApps(never);
    expect(apps.map(({ gpuUuid, usedMiB }) => [gpuUuid, usedMiB])).toEqual([
      ['MIG-b', 3_000],
      ['GPU-1', 3_000],
    ]);
  });

  test('is read again by itself, and when its instances change', async () => {
    await using stage = await Stage.simulated([{ ...gpu(0), mig: INSTANCES }]);
    await stage.until(() => stage.healths() === 'ok,ok');
    const other = INSTANCES.map((one) => ({ ...one, uuid: `${one.uuid}2`, gpuInstance: one.gpuInstance + 4 }));
    await stage.reshape([{ ...gpu(0), mig: other }]);
    await stage.until(
      () =>
        stage.sampler
          .readings()
          .map(({ uuid }) => uuid)
          .join() === 'MIG-a2,MIG-b2',
    );
    await stage.fault({ mode: 'garbage', bytes: 100, only: 'xml' });
    await stage.until(() => stage.healths() === 'stale,stale');
  });

  test('without an instance says so, and is not used', async () => {
    await using stage = await Stage.simulated([{ ...gpu(0), mig: [] }]);
    await stage.until(() => stage.sampler.readings()[0]?.note?.includes('has no instance') === true);
    expect(stage.sampler.readings()).toMatchObject([{ uuid: 'GPU-0', health: 'unreadable', freeMiB: null }]);
    await stage.reshape([{ ...gpu(0), mig: INSTANCES }]);
    await stage.until(() => stage.healths() === 'ok,ok');
  });

  test('that is lost takes its instances with it', async () => {
    await using stage = await Stage.simulated([{ ...gpu(0), mig: INSTANCES }, gpu(1)]);
    await stage.until(() => stage.healths() === 'ok,ok,ok');
    await stage.fault({ mode: 'lost', index: 0 });
    await stage.until(() => stage.healths() === 'lost,ok');
    await expect(stage.sampler.computeApps(never)).resolves.toEqual([]);
  });
});

test('a GPU that the driver does not list any more is absent, and its neighbour is not', async () => {
  const loop = `[ -e "$DIR/gone" ] && set -- one || set -- two\ncase $1 in one) while head -1 "$GOLDEN/two-h100.csv"; do sleep 0.05; done ;; esac\n`;
  await using stage = await Stage.open(`${loop}cat "$GOLDEN/two-h100.csv"; touch "$DIR/gone"; sleep 0.1`);
  await stage.until(() => stage.healths() === 'ok,ok');
  await stage.until(() => stage.healths() === 'ok,absent');
});

test('where nvidia-smi is installed later, GPUs and driver appear', async () => {
  await using stage = await Stage.open('');
  await stage.sampler.firstSample(never);
  expect(stage.sampler.problem).toMatchObject({ health: 'absent' });
  expect(await stage.sampler.inventory()).toEqual({ driver: null });
  await stage.install(`case "$*" in "-q -x") cat "$GOLDEN/one-gpu.xml"; exit ;; esac\n${forever('one-rtx4090.csv')}`);
  await stage.until(() => stage.healths() === 'ok' && stage.sampler.driver === '550.127.05');
  expect(stage.sampler.problem).toBeUndefined();
});

/** Holds a process where no signal reaches it, SIGKILL included. */
class Freezer implements Disposable {
  readonly #path = `${FREEZER}/gantry-smi-${process.pid}`;

  constructor() {
    mkdirSync(this.#path);
  }

  freeze(pid: number): void {
    writeFileSync(`${this.#path}/cgroup.procs`, String(pid));
    writeFileSync(`${this.#path}/freezer.state`, 'FROZEN');
  }

  thaw(): void {
    writeFileSync(`${this.#path}/freezer.state`, 'THAWED');
  }

  [Symbol.dispose](): void {
    this.thaw();
    for (const pid of readFileSync(`${this.#path}/cgroup.procs`, 'utf8').split('\n')) {
      if (pid !== '') writeFileSync(`${FREEZER}/cgroup.procs`, pid);
    }
    rmdirSync(this.#path);
  }
}

function canFreeze(): boolean {
  try {
    accessSync(`${FREEZER}/freezer.state`, constants.F_OK);
    return false; // only a child group has one: this is no cgroup v1 root
  } catch {
    try {
      accessSync(`${FREEZER}/cgroup.procs`, constants.W_OK);
      return true;
    } catch {
      return false;
    }
  }
}
