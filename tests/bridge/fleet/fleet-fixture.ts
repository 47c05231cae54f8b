import { randomUUID } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import type { BatchOrder } from '../../../bridge/fleet/batch-order.ts';
import type { BatchView } from '../../../bridge/fleet/batch-view.ts';
import type { Batch } from '../../../bridge/fleet/batch.ts';
import { Fleet } from '../../../bridge/fleet/fleet.ts';
import type { BridgeTimes, HostConfig } from '../../../bridge/fleet/host-view.ts';
import { pause } from '../../../shared/abort.ts';
import type { GenerateRequest, JobRequest } from '../../../shared/job.ts';
import { request } from './builders.ts';
import type { ScriptedAgent } from './scripted-agent.ts';

export const TIMES: BridgeTimes = {
  pingEveryMs: 100,
  silenceMs: 600,
  offerEveryMs: 100,
  reconnectFirstMs: 20,
  reconnectMaxMs: 200,
  diskCheckMs: 200,
};

export const log = pino({ level: 'silent' });

/** A laptop: a state directory and an output directory, on which fleets come and go. */
export class Laptop implements AsyncDisposable {
  readonly directory: string;
  readonly #fleets: Fleet[] = [];

  private constructor(directory: string) {
    this.directory = directory;
  }

  static async create(): Promise<Laptop> {
    return new Laptop(await mkdtemp(join(tmpdir(), 'gantry-fleet-')));
  }

  get output(): string {
    return join(this.directory, 'out');
  }

  fleet(
    agents: readonly (ScriptedAgent | HostConfig)[],
    times: Partial<BridgeTimes> = {},
    onEnding: (view: BatchView) => Promise<void> = () => Promise.resolve(),
  ): Fleet {
    const fleet = new Fleet({
      hosts: agents.map((agent) => ('config' in agent ? agent.config : agent)),
      bridgeId: randomUUID(),
      clientName: () => 'test',
      stateDir: this.directory,
      times: { ...TIMES, ...times },
      log,
      onEnding,
    });
    this.#fleets.push(fleet);
    return fleet;
  }

  order(jobs: number | readonly JobRequest[], o: Partial<BatchOrder> = {}): BatchOrder {
    const requests: readonly JobRequest[] =
      typeof jobs === 'number' ? [...Array(jobs).keys()].map((n) => request({ seed: n })) : jobs;
    return {
      kind: 'generate',
      class: 'batch',
      order: 'longest-first',
      maxConcurrent: undefined,
      host: undefined,
      client: 'test',
      ...o,
      jobs:
        o.jobs ??
        requests.map((one, index) => ({ index, request: one, directory: this.output, name: `image-${index}.png` })),
    };
  }

  /** What is saved there. A part may be there for a moment: the bridge tries out whether the disk can be written. */
  async files(): Promise<string[]> {
    let names: string[] = [];
    await until(() => {
      names = existsSync(this.output) ? readdirSync(this.output) : [];
      return !names.some((name) => name.endsWith('.part'));
    }, 'no part is left');
    return names.sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#fleets.map((fleet) => fleet.detach()));
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** Connected to all of its hosts, or told why not. */
export async function opened(fleet: Fleet): Promise<Fleet> {
  fleet.open();
  await fleet.settled({ signal: new AbortController().signal, withinMs: 60_000 });
  return fleet;
}

export async function ended(batch: Batch, ms = 60_000): Promise<BatchView> {
  return await batch.wait(AbortSignal.timeout(ms));
}

export async function until(condition: () => boolean, what: string, ms = 60_000): Promise<void> {
  const late = AbortSignal.timeout(ms);
  while (!condition()) {
    if (late.aborted) throw new Error(`not within ${ms} ms: ${what}`);
    await pause(5, late);
  }
}

export type { GenerateRequest };
