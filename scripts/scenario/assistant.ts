import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import type { BridgeClient } from '../lib/bridge-client.ts';
import type { Ask } from './plan.ts';

/** One picture that was asked for, and what became of it as the assistant was told. */
export type Told = { ask: Ask; prompt: string; askedMs: number; endedMs: number; filePath?: string; error?: string };

type JobResult = { prompt?: unknown; file_path?: unknown; error?: unknown };

type Desk = {
  bridge: BridgeClient;
  photo: string;
  signal: AbortSignal;
  /** A call that has no end by then after the last one was made will never have one. */
  patienceMs: number;
  onTold: (told: Told) => void;
};

/** All calls of the plan in their time, over one bridge, as an assistant would make them; waits for the end of each. */
export async function askAll(plan: readonly Ask[], desk: Desk): Promise<Told[]> {
  const startMs = performance.now();
  const lastMs = Math.max(...plan.map(({ afterMs }) => afterMs));
  using limit = new Deadline({ ms: lastMs + desk.patienceMs, signal: desk.signal });
  const told = plan.map(async (ask) => {
    await pause(startMs + ask.afterMs - performance.now(), limit.signal);
    const asked = ask.kind === 'batch' ? askBatch(ask, desk) : askOne(ask, desk);
    asked.catch(() => undefined); // seen below, or of no interest any more
    try {
      return await untilAborted(asked, limit.signal);
    } catch (error) {
      if (!limit.isExpired) throw error;
      const endedMs = performance.now();
      const why = `no end within ${Math.round(desk.patienceMs / 1000)} s of the last call`;
      return ask.prompts.map((prompt) => ({ ask, prompt, askedMs: startMs + ask.afterMs, endedMs, error: why }));
    }
  });
  return (await Promise.all(told)).flat();
}

async function askOne(ask: Ask, o: Desk): Promise<Told[]> {
  const { prompts, model, side, seed } = ask;
  const [prompt = ''] = prompts;
  const askedMs = performance.now();
  const common = { prompt, model: model.model, seed, preview: 'none' };
  const call =
    ask.kind === 'edit'
      ? o.bridge.call('edit_image', { ...common, image_path: o.photo, num_steps: model.steps, size_level: 512 })
      : o.bridge.call('generate_image', { ...common, width: side, height: side, num_inference_steps: model.steps });
  let answer = await call;
  while (!answer.isError && answer.json['status'] === 'running') {
    answer = await o.bridge.call('get_job', { id: String(answer.json['job_id']), wait_seconds: 45 });
  }
  const [result] = (answer.json['results'] ?? []) as JobResult[]; // the shape of get_job
  const path = answer.json['file_path'] ?? answer.json['output_path'] ?? result?.file_path;
  const told = {
    ask,
    prompt,
    askedMs,
    endedMs: performance.now(),
    ...outcome(path, answer.isError ? answer.text : result?.error),
  };
  o.onTold(told);
  return [told];
}

async function askBatch(ask: Ask, o: Desk): Promise<Told[]> {
  const { prompts, model, side, seed } = ask;
  const askedMs = performance.now();
  const size = { width: side, height: side, num_inference_steps: model.steps };
  const seeds = prompts.map((_, at) => seed + at);
  let answer = await o.bridge.call('batch_generate', {
    ...{ prompts, model: model.model, seeds, ...size, preview: 'none', wait_seconds: 0 },
  });
  while (!answer.isError && (answer.json['state'] ?? 'running') === 'running') {
    answer = await o.bridge.call('get_job', { id: String(answer.json['batch_id']), wait_seconds: 45 });
  }
  const endedMs = performance.now();
  const results = (answer.json['results'] ?? []) as JobResult[]; // the shape of get_job
  return prompts.map((prompt) => {
    const mine = results.find((result) => result.prompt === prompt);
    const told = {
      ask,
      prompt,
      askedMs,
      endedMs,
      ...outcome(mine?.file_path, mine === undefined ? answer.text : mine.error),
    };
    o.onTold(told);
    return told;
  });
}

function outcome(path: unknown, error: unknown): { filePath?: string; error?: string } {
  if (typeof path === 'string') return { filePath: path };
  return { error: typeof error === 'string' ? error : 'neither a file nor an error was told' };
}
