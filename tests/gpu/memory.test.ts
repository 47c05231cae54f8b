import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { GpuSampler } from '../../agent/gpu/gpu-sampler.ts';
import type { VramLook } from '../../agent/gpu/vram-measure.ts';
import { freedMiB, measureVram } from '../../agent/gpu/vram-measure.ts';
import { ProcessTable } from '../../agent/server/process-table.ts';
import { ServerLog } from '../../agent/server/server-log.ts';
import { ServerProcess } from '../../agent/server/server-process.ts';
import { ownersOf } from '../../agent/model/vram-owners.ts';
import { untilBack } from '../../agent/gpu/vram-verifier.ts';
import { createLog } from '../../shared/log.ts';
import { eventually, isAlive } from '../helpers/fleet.ts';
import { gpuTest, HOLDER } from './machine.ts';

/** Much more than a CUDA context takes by itself, and little for any card. */
const HELD_MIB = 2_048;
const signal = new AbortController().signal;

gpuTest(
  'memory of a process is seen by its pid and as a drop of free memory, and comes back after SIGKILL',
  async () => {
    await using stage = await Stage.open();
    const before = await stage.look();
    await using holder = await stage.hold([]);
    const held = await stage.look();
    const claim = stage.claim({ look: held, pids: holder.pids, heldMiB: stage.fellMiB(before, held) });
    expect(claim.heldMiB).toBeGreaterThanOrEqual(HELD_MIB);
    const isListed = held.apps.some(({ pid }) => holder.pids.includes(pid));
    if (isListed) {
      expect(claim.before.mineMiB).toBeGreaterThanOrEqual(HELD_MIB);
      const holders = [{ gpus: [stage.uuid], pids: holder.pids, heldMiB: claim.heldMiB }];
      const ours = ownersOf(stage.reading(held), { look: held, holders, personOf: () => undefined });
      expect(ours.oursMiB, 'as one of our servers').toBe(claim.before.mineMiB);
      const foreign = ownersOf(stage.reading(held), { look: held, holders: [], personOf: () => undefined }).foreign;
      expect(
        foreign.find(({ pid }) => holder.pids.includes(pid)),
        'as a program of somebody else',
      ).toMatchObject({
        usedMiB: claim.before.mineMiB,
        name: expect.stringMatching(/python/) as string,
      });
    }
    stage.say(
      `${claim.heldMiB} MiB held, ${isListed ? 'listed by pid' : 'pids are hidden here: seen by difference only'}`,
    );
    const killedMs = performance.now();
    process.kill(holder.pid, 'SIGKILL');
    const verdict = await untilBack(claim, { ...stage.limits, look: () => stage.look() });
    expect(verdict.isBack).toBe(true);
    stage.say(`back ${Math.round(performance.now() - killedMs)} ms after SIGKILL, ${Math.round(verdict.freedMiB)} MiB`);
  },
);

gpuTest('a process that ignores SIGTERM is ended after its grace, and its memory comes back', async () => {
  await using stage = await Stage.open();
  const before = await stage.look();
  await using holder = await stage.hold(['--ignore-term']);
  const held = await stage.look();
  const claim = stage.claim({ look: held, pids: holder.pids, heldMiB: stage.fellMiB(before, held) });
  const startMs = performance.now();
  await holder.stop({ graceMs: 1_000 });
  const stoppedMs = performance.now() - startMs;
  expect(stoppedMs).toBeGreaterThanOrEqual(900);
  expect(await isAlive(holder.pid)).toBe(false);
  const verdict = await untilBack(claim, { ...stage.limits, look: () => stage.look() });
  expect(verdict.isBack).toBe(true);
  stage.say(
    `stopped by force after ${Math.round(stoppedMs)} ms, memory back ${Math.round(performance.now() - startMs)} ms after the first signal`,
  );
});

/** The first GPU of this machine, seen with the agent's own eyes, and a directory for logs. */
class Stage implements AsyncDisposable {
  readonly limits = { deadlineMs: 30_000, pollMs: 100, signal };
  readonly #directory: string;
  readonly #sampler: GpuSampler;
  readonly uuid: string;

  private constructor(o: { directory: string; sampler: GpuSampler; uuid: string }) {
    this.#directory = o.directory;
    this.#sampler = o.sampler;
    this.uuid = o.uuid;
  }

  static async open(): Promise<Stage> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-gpu-'));
    const sampler = new GpuSampler({
      ...{ nvidiaSmi: 'nvidia-smi', sampleIntervalMs: 500, silenceMs: 10_000, queryTimeoutMs: 5_000 },
      log: createLog({ name: 'gpu-test', to: 'stderr', level: 'warn' }),
      onSample: () => undefined,
    });
    await sampler.firstSample(signal);
    const [first] = sampler.readings();
    return new Stage({ directory, sampler, uuid: first?.uuid ?? '' });
  }

  async look(): Promise<VramLook> {
    const apps = await this.#sampler.computeApps(signal);
    return { apps, isNumberedHere: true, readings: await this.#sampler.sampleNow(signal) };
  }

  reading(look: VramLook): VramLook['readings'][number] {
    const reading = look.readings.find(({ uuid }) => uuid === this.uuid);
    if (reading === undefined) throw new Error(`${this.uuid} is not among the readings`);
    return reading;
  }

  /** How much free memory fell from one look to the next. */
  fellMiB(from: VramLook, to: VramLook): number {
    return (this.reading(from).freeMiB ?? 0) - (this.reading(to).freeMiB ?? 0);
  }

  claim({ look, pids, heldMiB }: { look: VramLook; pids: readonly number[]; heldMiB: number }) {
    const before = measureVram(look, { gpus: [this.uuid], pids });
    if (before === undefined) throw new Error('the GPU shows no free memory');
    expect(freedMiB(before, before)).toBe(0);
    return { gpus: [this.uuid], pids, before, heldMiB };
  }

  /** A process started as the agent starts a server; it holds its memory when this resolves. */
  async hold(flags: readonly string[]): Promise<Holder> {
    const log = await ServerLog.create({ logDir: this.#directory, slotId: 'holder' });
    const server = await ServerProcess.start({
      argv: ['python3', HOLDER, String(HELD_MIB), ...flags],
      env: {
        PATH: process.env['PATH'] ?? '',
        LD_LIBRARY_PATH: process.env['LD_LIBRARY_PATH'] ?? '',
        CUDA_VISIBLE_DEVICES: this.uuid,
      },
      log,
      table: new ProcessTable(),
    });
    await eventually(
      'it holds its memory',
      async () => (await log.lastLines()).includes(`holding ${HELD_MIB} MiB`),
      30_000,
    );
    return new Holder(server);
  }

  say(text: string): void {
    process.stdout.write(`  ${text}\n`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sampler[Symbol.asyncDispose]();
    await rm(this.#directory, { recursive: true, force: true });
  }
}

class Holder implements AsyncDisposable {
  readonly pid: number;
  readonly pids: readonly number[];
  readonly stop: ServerProcess['stop'];

  constructor(server: ServerProcess) {
    this.pid = server.pid;
    this.pids = server.tree();
    this.stop = (options) => server.stop(options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop({ graceMs: 100 });
  }
}
