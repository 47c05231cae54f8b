import { readdir } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';
import type { BridgeClient } from '../lib/bridge-client.ts';
import type { SimulatedHost } from '../lib/simulated-host.ts';
import * as answers from './answers.ts';
import type { Checks } from './checks.ts';
import { ABSENT_MODEL, EDIT_MODEL, FAST_MODEL } from './hosts.ts';
import { idleHosts } from './idle.ts';
import type { Screen } from './screen.ts';
import { gb, seconds } from './screen.ts';

/** What every step works with. */
export type Stage = {
  bridge: BridgeClient;
  hosts: readonly SimulatedHost[];
  screen: Screen;
  checks: Checks;
  output: string;
};

const NEVER = new AbortController().signal;

/** 1. The hosts with their GPUs and VRAM, once the models that load at start are ready. */
export async function showHosts({ bridge, screen, checks, hosts }: Stage): Promise<unknown> {
  screen.heading('Hosts');
  let status = answers.GpuAnswer.parse(await bridge.ask('gpu_status'));
  for (let tries = 0; tries < 100 && readyHosts(status) < hosts.length; tries += 1) {
    screen.live(`loading ${FAST_MODEL}: ready on ${readyHosts(status)} of ${hosts.length} hosts`);
    await pause(200, NEVER);
    status = answers.GpuAnswer.parse(await bridge.ask('gpu_status'));
  }
  const rows = status.hosts.flatMap((host) =>
    host.gpus.map((gpu) => [
      host.host,
      gpu.gpu_name,
      `${gb(gpu.used_vram_gb ?? 0)} used`,
      `${gb(gpu.free_vram_gb ?? 0)} free`,
      `of ${gb(gpu.total_vram_gb ?? 0)}`,
      host.models.map((model) => `${model.model} (${model.state})`).join(', '),
    ]),
  );
  screen.table(rows);
  checks.expect(
    'hosts connected, first model ready',
    readyHosts(status) === hosts.length,
    `${readyHosts(status)} of ${hosts.length}`,
  );
  return status.hosts;
}

function readyHosts(status: answers.GpuAnswer): number {
  return status.hosts.filter((host) => host.models.some((model) => model.state === 'ready')).length;
}

/** 2. One image, with the host that made it and why; then one by a model that is loaded nowhere. */
export async function generateOne(
  { bridge, screen, checks, output }: Stage,
  o: { model: string; prompt: string; seed: number },
) {
  screen.heading(o.model === ABSENT_MODEL ? 'One image by a model that is loaded nowhere' : 'One image');
  const startMs = performance.now();
  const answer = answers.GeneratedAnswer.parse(
    await bridge.ask('generate_image', { ...o, output_dir: output }, { onProgress: (message) => screen.live(message) }),
  );
  screen.line(`"${o.prompt}" by ${o.model}`);
  screen.line(`host ${answer.host}: ${answer.routing}`);
  checks.expect(
    'image saved',
    answer.file_path.startsWith(output),
    `${answer.file_path} after ${wholeTime(startMs)}, of which the picture took ${seconds(answer.generation_time_seconds)}`,
  );
  return answer;
}

/** As somebody waits for it: with the load of the model, where it needs one. */
function wholeTime(startMs: number): string {
  return seconds((performance.now() - startMs) / 1_000);
}

const ANIMALS = [
  'a fox',
  'an owl',
  'an otter',
  'a lynx',
  'a hare',
  'a crane',
  'a badger',
  'a heron',
  'a stoat',
  'a raven',
  'a moose',
  'a trout',
];

/** 3. A batch of 12 that all hosts finish together. */
export async function generateBatch({ bridge, screen, checks, output }: Stage): Promise<answers.BatchAnswer> {
  screen.heading('A batch of 12 on three hosts of speed 1, 2 and 4');
  const answer = answers.BatchAnswer.parse(
    await bridge.ask(
      'batch_generate',
      {
        prompts: ANIMALS.map((animal) => `${animal} in the first snow, woodcut`),
        seeds: ANIMALS.map((_, index) => 100 + index),
        model: FAST_MODEL,
        width: 512,
        height: 512,
        output_dir: output,
      },
      { onProgress: (message) => screen.live(message) },
    ),
  );
  const { quality } = answer;
  const share = Object.entries(quality.images_per_host).map(([host, count]) => `${host} ${count}`);
  const idle = idleHosts(answer.results);
  checks.expect(
    'all files saved',
    answer.images_generated === 12,
    `${answer.images_generated} of 12 (${share.join(', ')})`,
  );
  checks.expect(
    'makespan / lower bound <= 1.25',
    quality.ratio <= 1.25,
    `${seconds(quality.makespan_seconds)} / ${seconds(quality.lower_bound_seconds)} = ${quality.ratio.toFixed(3)}`,
  );
  checks.expect(
    'no host idle while an image waits that it could have finished in time',
    idle.every(({ idleSeconds }) => idleSeconds < 0.5),
    idle.map(({ host, idleSeconds }) => `${host} ${seconds(idleSeconds)}`).join(', '),
  );
  return answer;
}

/** 4. One edit of a picture made before. */
export async function editOne({ bridge, screen, checks, output }: Stage, imagePath: string) {
  screen.heading('One edit');
  const startMs = performance.now();
  const answer = answers.EditedAnswer.parse(
    await bridge.ask(
      'edit_image',
      {
        image_path: imagePath,
        prompt: 'add a small red kite in the sky',
        model: EDIT_MODEL,
        output_path: `${output}/edited.png`,
        seed: 7,
      },
      { onProgress: (message) => screen.live(message) },
    ),
  );
  checks.expect(
    'edit saved',
    answer.output_path.startsWith(output),
    `${answer.output_path} by ${answer.host} after ${wholeTime(startMs)}, of which the edit took ${seconds(answer.processing_time)}`,
  );
  return answer;
}

/** 5. A batch of 6 cancelled after its first file. */
export async function cancelBatch({ bridge, screen, checks, output }: Stage) {
  screen.heading('A batch of 6, cancelled after its first file');
  const directory = `${output}/cancelled`;
  const started = answers.RunningAnswer.parse(
    await bridge.ask('batch_generate', {
      prompts: ANIMALS.slice(0, 6).map((animal) => `${animal} made of glass`),
      model: FAST_MODEL,
      output_dir: directory,
      max_concurrent: 1,
      wait_seconds: 0,
    }),
  );
  await firstDoneNextRunning(bridge, started.batch_id);
  const cancelled = answers.CancelAnswer.parse(await bridge.ask('cancel_batch', { batch_id: started.batch_id }));
  const running = cancelled.still_running.map(({ host }) => host);
  screen.line(
    `${cancelled.completed} finished, ${cancelled.cancelled} cancelled; still busy on ${running.join(', ') || 'no host'}`,
  );
  checks.expect(
    'the finished file stays',
    cancelled.files_saved.length === cancelled.completed,
    cancelled.files_saved.join(', '),
  );
  checks.expect(
    'the running job is reported as still holding its slot',
    running.length === 1,
    running.join(', ') || 'none',
  );
  await slotsIdle(bridge);
  const files = await readdir(directory);
  checks.expect(
    'no other file appears when the engine ends',
    files.length === cancelled.completed,
    `${files.length} file(s) in ${directory}`,
  );
  return cancelled;
}

/** Waits until the batch has its first file and its second image is in the middle of its steps. */
async function firstDoneNextRunning(bridge: BridgeClient, id: string): Promise<void> {
  for (;;) {
    const { progress } = answers.JobAnswer.parse(await bridge.ask('get_job', { id, wait_seconds: 0 }));
    if (progress.completed >= 1 && progress.step >= 1) return;
    await pause(30, NEVER);
  }
}

/** Waits until no slot of any host runs a job. */
async function slotsIdle(bridge: BridgeClient): Promise<void> {
  for (let tries = 0; tries < 200; tries += 1) {
    const { hosts } = answers.SlotsAnswer.parse(await bridge.ask('list_hosts'));
    if (hosts.every((host) => host.models.every((model) => model.slots.every((slot) => slot.phase !== 'running'))))
      return;
    await pause(100, NEVER);
  }
}

/** 6. Offload, then release, with the VRAM that nvidia-smi shows before and after. */
export async function giveBack(stage: Stage, host: SimulatedHost) {
  const { bridge, screen, checks } = stage;
  screen.heading(`Offload and release on ${host.name}`);
  const offloaded = await move(bridge, 'offload_gpu', host.name);
  screen.line(`offload: ${offloaded.message}`);
  const offloadShare = freedShare(offloaded);
  checks.expect('offload gives back at least 50 % of what the model held', offloadShare >= 0.5, percentOf(offloaded));
  await bridge.ask('load_model', { model: FAST_MODEL, host: host.name, wait_seconds: 45 });
  const tree = await host.computePids();
  const released = await move(bridge, 'release_gpu', host.name);
  screen.line(`release: ${released.message}`);
  checks.expect('release gives back at least 80 %', freedShare(released) >= 0.8, percentOf(released));
  const left = await host.computePids();
  checks.expect(
    'after release no process of its tree holds VRAM',
    left.length === 0,
    `${tree.length} before, ${left.length} after`,
  );
  return { offloaded, released };
}

async function move(bridge: BridgeClient, tool: 'offload_gpu' | 'release_gpu', host: string) {
  const answer = answers.MoveAnswer.parse(await bridge.ask(tool, { model: FAST_MODEL, host, wait_seconds: 45 }));
  const [first] = answer.hosts;
  if (first === undefined) throw new Error(`${tool} moved no model on ${host}`);
  return { message: answer.message, ...first.vram };
}

type Moved = Awaited<ReturnType<typeof move>>;

function freedShare(moved: Moved): number {
  return (moved.free_after_gb - moved.free_before_gb) / moved.held_before_gb;
}

function percentOf(moved: Moved): string {
  const share = Math.round(freedShare(moved) * 100);
  return `${gb(moved.free_before_gb)} free before, ${gb(moved.free_after_gb)} after: ${share} % of ${gb(moved.held_before_gb)}`;
}
