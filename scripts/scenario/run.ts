import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { stringify } from 'yaml';
import { AgentFile } from '../../agent/config-schema.ts';
import { BridgeClient } from '../lib/bridge-client.ts';
import type { LoggedEvent } from '../lib/simulated-host.ts';
import { SimulatedHost } from '../lib/simulated-host.ts';
import { Ledger, startTimeOf } from '../sim/lib/ledger.ts';
import type { Told } from './assistant.ts';
import { askAll } from './assistant.ts';
import type { GpuPeak } from './ledger-watch.ts';
import { LedgerWatch } from './ledger-watch.ts';
import { configOf, GPUS, MODELS } from './models.ts';
import type { Move } from './moves.ts';
import { movesIn } from './moves.ts';
import type { Picture } from './pictures.ts';
import { readPicture } from './pictures.ts';
import type { Ask } from './plan.ts';
import { remainsOf } from './remains.ts';

export type ScenarioOptions = {
  plan: readonly Ask[];
  /** Everything of the scenario lives below here, and is left there for whoever wants to look. */
  directory: string;
  signal: AbortSignal;
  onTold?: (told: Told) => void;
};

/** One picture, with what the assistant was told, what lies on disk, and what the agent logged about it. */
export type Job = Told & { picture?: Picture; acceptedMs?: number; doneMs?: number; problem?: string };

export type ScenarioReport = {
  jobs: Job[];
  moves: Move[];
  gpus: GpuPeak[];
  ledger: { looks: number; longestGapMs: number };
  tookMs: number;
  exitCode: number | undefined;
  /** Empty where everything held that the scenario promises. */
  problems: string[];
};

/** As shipped, but a turn that fits loads of a second instead of a minute. */
const CONFIG = {
  gpu: { sample_interval: '250ms' },
  times: { turn: '1500ms', health_poll: '200ms', stop_grace: '5s', vram_back: '5s' },
};
/** Somebody's desktop on the second card. */
const FOREIGN_MIB = 400;
const PATIENCE_MS = 240_000;
const PHOTO = { width: 640, height: 480 };

/** Runs the plan on one simulated host, with a real agent and a real bridge, and checks it from outside. */
export async function runScenario({ plan, directory, signal, onTold }: ScenarioOptions): Promise<ScenarioReport> {
  const startMs = performance.now();
  const foreign = execa('sleep', ['100000'], { reject: false });
  const hostDirectory = join(directory, 'host');
  const starting = SimulatedHost.start({
    ...{ name: 'tower', directory: hostDirectory, gpus: GPUS, config: CONFIG },
    models: Object.fromEntries(MODELS.map((model) => [model.alias, configOf(model)])),
  });
  try {
    const host = await starting;
    const stranger = noteForeign(host, foreign.pid);
    await using watch = new LedgerWatch({ directory: host.ledger, reserveMiB: AgentFile.parse({}).gpu.reserve });
    const clock = { wallMs: Date.now(), ms: performance.now() };
    const told = await askThroughBridge(host, { plan, directory, signal, onTold: onTold ?? (() => undefined) });
    const exitCode = await host.stopAgent();
    const remains = await remainsOf(hostDirectory, { except: [stranger.pid] });
    await watch[Symbol.asyncDispose]();
    const jobs = await Promise.all(told.map(async (one) => withLog(await withPicture(one), { host, clock })));
    const report = {
      ...{ jobs, exitCode, gpus: watch.peaks(), tookMs: performance.now() - startMs },
      moves: movesIn(watch.trace, MODELS),
      ledger: { looks: watch.looks, longestGapMs: watch.longestGapMs },
    };
    const isTouched = startTimeOf(stranger.pid) !== stranger.startTime;
    return {
      ...report,
      problems: [...problemsOf(report, remains), ...(isTouched ? ['the foreign process was ended'] : [])],
    };
  } finally {
    await starting.then((host) => host[Symbol.asyncDispose]()).catch(() => undefined); // its own failure was thrown above
    foreign.kill('SIGKILL');
    await foreign;
  }
}

function noteForeign(host: SimulatedHost, pid = 0): { pid: number; startTime: string } {
  const ledger = new Ledger(host.ledger);
  const startTime = startTimeOf(pid) ?? '';
  const gpuUuid = ledger.gpus()[1]?.uuid ?? '';
  ledger.note({ pid, startTime, gpuUuid, usedMiB: FOREIGN_MIB, name: 'Xorg' });
  return { pid, startTime };
}

async function askThroughBridge(
  host: SimulatedHost,
  o: { plan: readonly Ask[]; directory: string; signal: AbortSignal; onTold: (told: Told) => void },
): Promise<Told[]> {
  const laptop = join(o.directory, 'laptop');
  const output = join(laptop, 'pictures');
  await mkdir(output, { recursive: true });
  const photo = join(laptop, 'photo.png');
  await sharp({ create: { ...PHOTO, channels: 3, background: '#7a9' } })
    .png()
    .toFile(photo);
  const config = join(laptop, 'bridge.yaml');
  const hosts = [{ name: host.name, url: host.url, token: host.token }];
  await writeFile(config, stringify({ hosts, output_dir: output, roots: [laptop], log_level: 'warn' }), {
    mode: 0o600,
  });
  await using bridge = await BridgeClient.start({ config, home: laptop, clientName: 'scenario' });
  return await askAll(o.plan, { ...o, bridge, photo, patienceMs: PATIENCE_MS });
}

async function withPicture(told: Told): Promise<Job> {
  if (told.filePath === undefined) return { ...told, problem: told.error ?? 'no file' };
  try {
    const picture = await readPicture(told.filePath);
    const { ask } = told;
    const size = ask.kind === 'edit' ? PHOTO : { width: ask.side, height: ask.side };
    const isRight =
      picture.width === size.width &&
      picture.height === size.height &&
      picture.prompt === told.prompt &&
      picture.model === ask.model.model;
    if (isRight) return { ...told, picture };
    return { ...told, picture, problem: `not what was asked for: ${JSON.stringify(picture)}` };
  } catch (error) {
    return { ...told, problem: String(error) };
  }
}

/** When the agent accepted it and when it was done, by the agent's own log. */
function withLog(job: Job, { host, clock }: { host: SimulatedHost; clock: { wallMs: number; ms: number } }): Job {
  const jobId = job.picture?.jobId;
  if (jobId === undefined) return job;
  const find = (name: string): LoggedEvent | undefined =>
    host.events(name).findLast((event) => event['jobId'] === jobId);
  const at = (event: LoggedEvent | undefined): number | undefined => event && event.time - clock.wallMs + clock.ms;
  const acceptedMs = at(find('job-accepted'));
  const doneMs = at(find('job-done'));
  return { ...job, ...(acceptedMs !== undefined && { acceptedMs }), ...(doneMs !== undefined && { doneMs }) };
}

function problemsOf(report: Omit<ScenarioReport, 'problems'>, remains: readonly string[]): string[] {
  const { jobs, gpus, exitCode } = report;
  const paths = jobs.flatMap(({ filePath }) => filePath ?? []);
  return [
    ...jobs.flatMap(({ prompt, problem }) => (problem === undefined ? [] : [`${prompt}: ${problem}`])),
    ...(new Set(paths).size === paths.length ? [] : ['two jobs have the same file']),
    ...gpus
      .filter((gpu) => gpu.mostUsedMiB > gpu.promisedMiB)
      .map((gpu) => `GPU ${gpu.index}: ${gpu.mostUsedMiB} MiB were used, ${gpu.promisedMiB} are promised at most`),
    ...(exitCode === 0 ? [] : [`the agent ended with ${exitCode}`]),
    ...remains.map((what) => `left at the end: ${what}`),
  ];
}
