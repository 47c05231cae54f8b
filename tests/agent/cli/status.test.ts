import { describe, expect, test } from 'vitest';
import { statusLines } from '../../../agent/cli/status.ts';
import { tableLines, timeText, wrapped } from '../../../agent/cli/screen.ts';
import type { GpuStatus, HostSnapshot, ModelStatus } from '../../../shared/host-snapshot.ts';
import { PROFILES } from '../../../shared/profiles.ts';

const GPU: GpuStatus = {
  uuid: 'GPU-0',
  index: 0,
  name: 'NVIDIA GeForce RTX 4090',
  totalMiB: 24_564,
  usedMiB: 16_896,
  freeMiB: 7_168,
  utilisationPercent: 0,
  temperatureC: 40,
  powerW: 30,
  health: 'ok',
  ageMs: 400,
  isDegraded: false,
  oursMiB: 15_360,
  foreign: [],
};
const [profile] = PROFILES;
if (profile === undefined) throw new Error('there are shipped profiles');
const MODEL: ModelStatus = {
  model: 'Qwen/Qwen-Image-2512@0123456789abcdef0123456789abcdef01234567',
  alias: 'qwen-image',
  engine: 'vllm-omni',
  isAttached: false,
  profile,
  profileFrom: 'shipped',
  state: 'ready',
  gpus: ['GPU-0'],
  heldMiB: 15_360,
  isPinned: false,
  loadedMiB: 15_360,
  peakMiB: 16_000,
  isMeasured: true,
  loadMs: 74_000,
  wakeMs: 2_100,
  service: { fixedMs: 1, unitMs: 1, samples: 3 },
  idleMs: 180_000,
  heldAwayMs: 0,
  jobsDone: 12,
  loads: 1,
  wakes: 2,
  offloads: 2,
  releases: 0,
  slots: [{ slotId: 'qwen-image', phase: 'idle', freeInMs: 0, isCancelled: false }],
};
const HOST: HostSnapshot = {
  agentId: 'x',
  hostname: 'attic',
  agentVersion: '1.2.3',
  isSimulated: false,
  isDraining: false,
  driver: '550.54.15',
  problems: [],
  gpus: [GPU],
  memory: { totalMiB: 65_536, freeMiB: 32_768 },
  disk: { freeMiB: 102_400 },
  models: [MODEL],
  offered: [],
};

const text = (host: Partial<HostSnapshot>, columns?: number): string =>
  statusLines({ ...HOST, ...host }, { columns }).join('\n');

describe('the screen', () => {
  test('has VRAM as nvidia-smi shows it, the models, and what they take', () => {
    const lines = text({});
    expect(lines).toContain('attic: gantry-agent 1.2.3, driver 550.54.15');
    expect(lines).toMatch(/^0 +16\.5 +24\.0 +7\.0 +15\.0 +0\.0 +ok +NVIDIA GeForce RTX 4090$/m);
    expect(lines).toMatch(/^qwen-image +ready +15\.0 +12 +3 min +74 s +2\.1 s +Qwen\/Qwen-Image-2512@/m);
    expect(lines).toContain('host RAM 32.0 of 64.0 GiB free, disk 100.0 GiB free');
  });

  test('names who else holds VRAM, with pid and MiB', () => {
    const foreign = [{ pid: 4321, name: 'python3', usedMiB: 1_536 }];
    expect(text({ gpus: [{ ...GPU, unlisted: 'Who holds it is not listed here.' }] })).toContain(
      '     Who holds it is not listed here.',
    );
    expect(text({ gpus: [{ ...GPU, foreign }] })).toMatch(/ 1\.5 +ok .*\n +python3 \(pid 4321\) 1536 MiB$/m);
  });

  test.each([
    ['a degraded GPU', { isDegraded: true }, / degraded /],
    ['a lost one', { health: 'lost', ageMs: 12_000 } as const, / lost, 12 s old /],
    ['an old reading', { health: 'stale', ageMs: 45_000 } as const, / stale, 45 s old /],
    ['what is not reported', { usedMiB: null, freeMiB: null, totalMiB: null }, /^0 +\? +\? +\? /m],
  ])('shows %s', (_, change, expected) => {
    expect(text({ gpus: [{ ...GPU, ...change }] })).toMatch(expected);
  });

  test('says what is in the way, why slots are closed, and that numbers are guesses', () => {
    const slots = [
      {
        slotId: 'a',
        phase: 'cannot' as const,
        freeInMs: 0,
        isCancelled: false,
        reason: 'It was removed from agent.yaml.',
      },
    ];
    const lines = text({
      isDraining: true,
      problems: ['The host is draining: `gantry-agent resume` there ends that.'],
      models: [{ ...MODEL, isMeasured: false, wakes: 0, detail: 'loading: 41 s so far', slots }],
    });
    expect(lines).toContain(', draining');
    expect(lines).toContain('! The host is draining: `gantry-agent resume` there ends that.');
    expect(lines).toContain('  loading: 41 s so far');
    expect(lines).toContain('  It was removed from agent.yaml.');
    expect(lines).toMatch(/ ~74 s +~2\.1 s /);
  });

  test('shows the end of what a failed server wrote, and where the rest is', () => {
    const log = Array.from({ length: 20 }, (_, at) => `line ${at} ${'x'.repeat(100)}`).join('\n');
    const detail = `The server of qwen-image was ended by SIGKILL. The last lines of its log:\n${log}`;
    const lines = text({ models: [{ ...MODEL, state: 'failed', detail }] }, 80).split('\n');
    const from = lines.findIndex((line) => line.startsWith('  The server of qwen-image'));
    expect(lines.slice(from, from + 5)).toEqual([
      '  The server of qwen-image was ended by SIGKILL. The last lines of its log:',
      expect.stringMatching(/^ {4}line 17 x+…$/),
      expect.stringMatching(/^ {4}line 18 x+…$/),
      expect.stringMatching(/^ {4}line 19 x+…$/),
      '    all of it: gantry-agent logs qwen-image',
    ]);
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
  });

  test('says once what keeps every model of the host', () => {
    const reason = 'The agent is starting: it clears up what the last one left, and looks at the GPUs.';
    const slots = [{ slotId: 'a', phase: 'cannot' as const, freeInMs: 0, isCancelled: false, reason }];
    const lines = text({ problems: [reason], models: [MODEL, { ...MODEL, alias: 'other', slots }] });
    expect(lines.split(reason)).toHaveLength(2);
  });

  test('fits a terminal of 80 columns and 24 rows with two GPUs and five models', () => {
    const models = Array.from({ length: 5 }, (_, at) => ({ ...MODEL, alias: `model-with-a-long-name-${at}` }));
    const problems = [
      'GPU 1 takes no work: memory of an ended server has not come back after a minute or so of waiting.',
    ];
    const lines = statusLines({ ...HOST, gpus: [GPU, { ...GPU, index: 1 }], models, problems }, { columns: 80 });
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
    expect(lines.length).toBeLessThanOrEqual(24);
  });

  test('lets no text of an engine move the cursor', () => {
    expect(text({ models: [{ ...MODEL, detail: 'evil \u001b[2J\u0007 text' }] })).not.toMatch(/[\u0007\u001b]/);
  });

  test('of a host with nothing says so', () => {
    expect(text({ gpus: [], models: [] })).toMatch(/nvidia-smi has shown no GPU\.[^]*No model is configured\./);
  });
});

test('times are read at a glance', () => {
  expect([0, 850, 7_400, 74_000, 720_000, 12_600_000].map(timeText)).toEqual([
    '0 ms',
    '850 ms',
    '7.4 s',
    '74 s',
    '12 min',
    '3.5 h',
  ]);
});

test('tables align and sentences wrap', () => {
  expect(
    tableLines([
      ['a', 'bb', 'c'],
      ['aaa', 'b', 'cc'],
    ]),
  ).toEqual(['a    bb  c', 'aaa  b   cc']);
  expect(wrapped('one two three four', { columns: 9, indent: '  ' })).toEqual(['  one two', '  three', '  four']);
});
