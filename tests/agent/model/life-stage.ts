import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { GpuSampler } from '../../../agent/gpu/gpu-sampler.ts';
import { HOST } from '../../../agent/engine/engine.ts';
import { vllmOmni } from '../../../agent/engine/vllm-omni.ts';
import { CgroupRoot } from '../../../agent/server/cgroup.ts';
import { PortTable } from '../../../agent/server/free-port.ts';
import { ProcessTable } from '../../../agent/server/process-table.ts';
import type { ModelTimes, ServerLifeOptions } from '../../../agent/model/server-life.ts';
import { ServerLife } from '../../../agent/model/server-life.ts';
import { ServerRecords } from '../../../agent/server/server-records.ts';
import type { VramMeasure } from '../../../agent/gpu/vram-measure.ts';
import { toAppError } from '../../../shared/errors.ts';
import { omni } from './model-host.ts';

export type Event = { event: string } & Record<string, unknown>;

export type StageOptions = {
  model?: ConfiguredModel;
  times?: Partial<ModelTimes>;
  /** A control group that stands for the agent's own. */
  cgroup?: string | undefined;
  more?: Partial<ServerLifeOptions>;
};

const TIMES: ModelTimes = {
  ...{ stopGraceMs: 400, vramBackMs: 1_000, vramBackOffloadedMs: 6_000, startDeadlineMs: 15_000, stallMs: 15_000 },
  ...{ healthPollMs: 50, retryFirstMs: 100 },
};

/** The life of one server, without a GPU, and what is logged about it. */
export class LifeStage implements AsyncDisposable {
  readonly directory: string;
  readonly life: ServerLife;
  readonly records: ServerRecords;
  readonly events: Event[];

  private constructor(o: { directory: string; life: ServerLife; records: ServerRecords; events: Event[] }) {
    this.directory = o.directory;
    this.life = o.life;
    this.records = o.records;
    this.events = o.events;
  }

  static async open({ model = omni('a'), times, cgroup, more }: StageOptions = {}): Promise<LifeStage> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-life-'));
    const { log, events } = eventLog();
    const records = new ServerRecords({ stateDir: directory, log });
    const cgroups = cgroup === undefined ? undefined : await CgroupRoot.open({ stateDir: directory, log, own: cgroup });
    const life = new ServerLife({
      ...{
        slotId: 'a',
        model,
        engine: vllmOmni(),
        records,
        log,
        table: new ProcessTable(),
        ports: new PortTable(HOST),
      },
      cgroups: () => cgroups,
      extraEnv: () => ({}),
      logDir: join(directory, 'logs'),
      logs: { maxMiB: 20, keep: 5 },
      times: { ...TIMES, ...times },
      look: () => Promise.resolve(undefined),
      usedMiB: () => 0,
      loadedMiB: () => 0,
      onChange: () => undefined,
      onVramMissing: () => undefined,
      ...more,
    });
    return new LifeStage({ directory, life, records, events });
  }

  /** As a load does it. */
  async load(before?: VramMeasure): Promise<void> {
    const { life } = this;
    await life.begin(['GPU-0'], before);
    try {
      await life.untilAnswering();
    } catch (error) {
      throw await life.buriedFor(toAppError(error));
    }
    await life.throwIfDead();
    life.becomes('ready');
  }

  event(name: string): Event | undefined {
    return this.events.find(({ event }) => event === name);
  }

  recordsText(): Promise<string> {
    return readFile(join(this.directory, 'servers.json'), 'utf8').catch(() => '');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.life.shutdown({ graceMs: 200, work: () => undefined });
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

/** A log whose lines can be looked at. */
export function eventLog(): { log: pino.Logger; events: Event[] } {
  const events: Event[] = [];
  const write = (line: string): void => void events.push(JSON.parse(line) as Event); // what pino wrote
  return { log: pino({ level: 'debug' }, { write }), events };
}

/** A server that is a shell script; the engine's own arguments are its $@, the port $PORT. */
export function script(text: string, more: Partial<ConfiguredModel> = {}): ConfiguredModel {
  const findPort = 'for word; do [ "$last" = --port ] && PORT=$word; last=$word; done';
  const command = ['/bin/sh', '-c', `${findPort}\n${text}`, 'sh'];
  return { ...omni('a'), launch: { kind: 'owned', command, args: [], env: {}, download: 'none' }, ...more };
}

/** Of a machine without nvidia-smi. */
export function quietSampler(): GpuSampler {
  const times = { sampleIntervalMs: 1_000, silenceMs: 10_000, queryTimeoutMs: 1_000 };
  return new GpuSampler({ nvidiaSmi: '/no/such/nvidia-smi', ...times, log: eventLog().log, onSample: () => undefined });
}
