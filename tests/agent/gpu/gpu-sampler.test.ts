import { expect, test, vi } from 'vitest';
import { never, Stage } from './stage.ts';

vi.setConfig({ testTimeout: 120_000 });

const COUNT = 'echo x >> "$DIR/starts"';
const IS_LOOP = 'case "$*" in *-lms*) ;; *) exit 9 ;; esac';

test('reads one long-lived child, line by line', async () => {
  await using stage = await Stage.open(`${COUNT}\nwhile cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done`);
  await stage.sampler.firstSample(never);
  await stage.until(() => stage.sampler.readings().length === 2);
  const [first] = stage.sampler.readings();
  expect(first).toMatchObject({ index: 0, freeMiB: 55_614, health: 'ok' });
  const before = first?.ageMs ?? 0;
  await stage.until(() => (stage.sampler.readings()[0]?.ageMs ?? before) < 50);
  expect(await stage.starts()).toBe(1);
});

test('takes the next rung when the driver does not know a field', async () => {
  await using stage = await Stage.open(
    `${COUNT}\ncase "$*" in *mig.mode*|*timestamp*) cat "$GOLDEN/unknown-field.txt"; exit 2 ;; esac\n` +
      `while cat "$GOLDEN/minimal.csv"; do sleep 0.05; done`,
  );
  await stage.sampler.firstSample(never);
  expect(stage.sampler.readings()).toMatchObject([{ name: 'Tesla K80', temperatureC: null, health: 'ok' }]);
  expect(await stage.starts()).toBe(3); // and no rung twice
});

test('replaces a child that has fallen silent; until then the values carry their age', async () => {
  await using stage = await Stage.open(
    `${COUNT}\ncat "$GOLDEN/two-h100.csv"\n[ "$(wc -l < "$DIR/starts")" -gt 1 ] || exec sleep 60\n` +
      `while cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done`,
    { silenceMs: 1_500 },
  );
  await stage.sampler.firstSample(never);
  await stage.until(() => stage.sampler.readings()[0]?.health === 'stale');
  await stage.until(async () => (await stage.starts()) === 2 && stage.sampler.readings()[0]?.health === 'ok');
});

test('says that the program is absent, and goes on trying', async () => {
  await using stage = await Stage.open('');
  await stage.sampler.firstSample(never);
  expect(stage.sampler.readings()).toEqual([]);
  expect(stage.sampler.problem).toMatchObject({ health: 'absent' });
});

test('says that the driver is gone, on every GPU it knew', async () => {
  await using stage = await Stage.open(
    `[ ! -e "$DIR/broken" ] || { cat "$GOLDEN/no-driver.txt"; exit 9; }\n${IS_LOOP}\n` +
      `cat "$GOLDEN/two-h100.csv"; touch "$DIR/broken"; sleep 0.05`,
  );
  await stage.sampler.firstSample(never);
  await stage.until(() => stage.sampler.readings().every(({ health }) => health === 'unreadable'));
  expect(stage.sampler.problem?.reason).toContain("couldn't communicate");
});

test('gives a one-shot 3 s, and does not wait for who holds its pipe', async () => {
  await using stage = await Stage.open(
    `case "$*" in *-lms*) while cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done ;; esac\n` +
      `case "$*" in *compute-apps*) trap '' TERM; sleep 60 & wait ;; esac\n` +
      `sleep 30 & cat "$GOLDEN/two-h100.csv"`,
  );
  await stage.sampler.firstSample(never);
  const startMs = performance.now();
  expect(await stage.sampler.sampleNow(never)).toHaveLength(2);
  expect(performance.now() - startMs).toBeLessThan(20_000);
  await expect(stage.sampler.computeApps(never)).rejects.toMatchObject({ code: 'GPU_LOST' });
  expect(performance.now() - startMs).toBeLessThan(40_000);
});

test('asks nobody else while a quick loop prints, and a question that waits for its turn only once', async () => {
  await using stage = await Stage.open(
    `${COUNT}\ncase "$*" in *-lms*) while cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done ;; esac\n` +
      `sleep 0.2; cat "$GOLDEN/compute-apps.csv"`,
  );
  const { sampler } = stage;
  await sampler.firstSample(never);
  const askedMs = performance.now();
  const [readings] = await Promise.all([sampler.sampleNow(never), sampler.sampleNow(never)]);
  expect(performance.now() - (readings[0]?.ageMs ?? Infinity)).toBeGreaterThan(askedMs);
  expect(await stage.starts()).toBe(1);
  const first = sampler.computeApps(never);
  await stage.until(async () => (await stage.starts()) === 2);
  const [second, third] = await Promise.all([sampler.computeApps(never), sampler.computeApps(never)]);
  expect([await first, second]).toEqual([third, third]);
  expect(await stage.starts()).toBe(3);
});

test('shows the memory of the host where it is the memory of the GPU', async () => {
  await using stage = await Stage.open(`while cat "$GOLDEN/unified-gb10.csv"; do sleep 0.05; done`);
  await stage.sampler.firstSample(never);
  const [reading] = stage.sampler.readings();
  expect(reading?.totalMiB).toBeGreaterThan(100);
  expect(reading?.freeMiB).toBeLessThanOrEqual(reading?.totalMiB ?? 0);
});

test('reads the driver from the inventory, and from a short query where there is none', async () => {
  const loop = `case "$*" in *-lms*) while cat "$GOLDEN/two-h100.csv"; do sleep 0.05; done ;; esac`;
  const xml = '<nvidia_smi_log><driver_version>580.95.05</driver_version><gpu id="0"/></nvidia_smi_log>';
  await using full = await Stage.open(`${loop}\ncase "$*" in "-q -x") echo '${xml}' ;; *) exit 2 ;; esac`);
  expect(await full.sampler.inventory()).toEqual({ driver: '580.95.05' });
  await using short = await Stage.open(
    `${loop}\ncase "$*" in *driver_version*) echo 535.10 ;; *) echo oops >&2; exit 0 ;; esac`,
  );
  expect(await short.sampler.inventory()).toEqual({ driver: '535.10' });
  await using none = await Stage.open(`${loop}\nexit 9`);
  expect(await none.sampler.inventory()).toEqual({ driver: null });
});
