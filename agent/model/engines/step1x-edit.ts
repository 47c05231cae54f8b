import { AppError } from '../../../shared/errors.ts';
import type { JobRequest } from '../../../shared/job.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Call, Engine, ServerFacts } from './engine.ts';
import { HOST, answerOrUndefined, callEngine, callForImage, engineError, isHealthy, isOutOfMemory } from './engine.ts';
import { multipart } from './multipart.ts';
import { SMALL_PICTURE } from './small-picture.ts';

/** The two published servers differ in the paths below; the edit itself is the same. */
const UNIFIED_PATHS = '/api/gpu';
const API_PATHS = '/gpu';

/** The smallest edit that brings the weights onto the GPU. */
const FIRST_EDIT = { prompt: 'make it brighter', num_steps: '10', guidance_scale: '6', size_level: '512', seed: '0' };

/**
 * Step1X-Edit: the weights come with the first edit and return to host RAM after every edit. It has no call to load or
 * wake; while it works it answers nothing at all, /health included.
 */
export function step1xEdit(): Engine {
  return {
    kind: 'step1x-edit',
    wakesBy: 'job',
    command,
    probe,
    finishLoad,
    isHealthy,
    run,
    offload,
    wake: () => Promise.resolve(), // the next edit does it
    isFatalStart: ({ exitCode, logText }) => exitCode === 2 || isOutOfMemory(logText),
  };
}

function command({ model, port }: { model: ConfiguredModel; port: number }): ReturnType<Engine['command']> {
  const { launch } = model;
  if (launch.kind !== 'owned') throw new Error(`${model.alias} is attached: it has no command`);
  const env = {
    // One of its servers reads PORT, the other API_PORT.
    ...{ HOST, PORT: String(port), API_PORT: String(port) },
    // It makes "cuda:<this>" of it: an index among the visible GPUs, of which there is one.
    NVIDIA_VISIBLE_DEVICES: '0',
    // Its own timer counts from the start of an edit and can offload in the middle of a long one.
    GPU_IDLE_TIMEOUT: '86400',
  };
  return { argv: [...launch.command, ...launch.args], env };
}

async function probe({
  url,
  model,
  signal,
  deadlineMs,
}: Parameters<Engine['probe']>[0]): Promise<ServerFacts | undefined> {
  if (!(await isHealthy({ url, signal, deadlineMs }))) return undefined;
  const status = await answerOrUndefined(`${url}${UNIFIED_PATHS}/status`, { signal, deadlineMs });
  if (status === undefined) return undefined;
  return { servedName: model.id, paths: status.status === 200 ? UNIFIED_PATHS : API_PATHS };
}

async function finishLoad(call: Call): Promise<void> {
  await edit({ fields: FIRST_EDIT, input: SMALL_PICTURE, call });
}

async function run(request: JobRequest, inputs: readonly Buffer[], call: Call): ReturnType<Engine['run']> {
  const [input] = inputs;
  if (request.kind !== 'edit' || input === undefined || inputs.length > 1) {
    throw new AppError(
      'INVALID_ARGUMENT',
      'Step1X-Edit edits exactly one picture and generates none. Use another model.',
    );
  }
  const fields = {
    prompt: request.prompt,
    num_steps: String(request.steps),
    guidance_scale: String(request.guidance.value),
    size_level: String(request.sizeLevel ?? 1024),
    seed: String(request.seed),
  };
  const image = await edit({ fields, input, call });
  const notes = request.negativePrompt === undefined ? [] : ['Step1X-Edit takes no negative prompt; it was ignored.'];
  return { image, notes };
}

function edit({ fields, input, call }: { fields: Record<string, string>; input: Buffer; call: Call }): Promise<Buffer> {
  const form = multipart(fields, [{ name: 'file', fileName: 'input.png', bytes: input }]);
  const { signal, deadlineMs } = call;
  // The unified server answers the picture itself, the other one JSON.
  return callForImage(`${call.url}/api/edit`, { method: 'POST', ...form, signal, deadlineMs, field: 'image_base64' });
}

/** Its answer is a claim, also in versions where nothing was moved: nvidia-smi decides. */
async function offload({ url, facts, signal, deadlineMs }: Call): Promise<void> {
  const path = `${facts.paths ?? UNIFIED_PATHS}/offload`;
  const answer = await callEngine(`${url}${path}`, { method: 'POST', signal, deadlineMs });
  if (answer.status !== 200) throw engineError(answer);
}
