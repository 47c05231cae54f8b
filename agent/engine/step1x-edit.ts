import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Call, Engine, ServerFacts } from './engine.ts';
import type { EngineAnswer } from './engine.ts';
import { HOST, answerOrUndefined, callEngine, engineError, errorText, isOutOfMemory } from './engine.ts';
import { NOWHERE, callForImage } from './image-answer.ts';
import type { ImageSink } from './image-answer.ts';
import { multipart } from './multipart.ts';
import { SMALL_PICTURE } from './small-picture.ts';

/** The two published servers differ in the paths below; the edit itself is the same. */
const UNIFIED_PATHS = '/api/gpu';
const API_PATHS = '/gpu';

/**
 * The smallest edit that brings the weights onto the GPU. Its arrow is no Latin-1 character: a server that cannot return
 * one in a header fails here, after the weights are loaded, and not in a job after minutes of work.
 */
const FIRST_EDIT = { prompt: 'brighter \u2192', num_steps: '10', guidance_scale: '6', size_level: '512', seed: '0' };
const BEYOND_LATIN1 = /[^\u0000-\u00ff]/;
const LATIN1_ONLY =
  'This version of its server cannot return a prompt with other than Latin-1 characters. Write the prompt with plain ' +
  'letters, or update the server.';

/** What these servers say of defects that no retry mends, and what to do. */
const DEFECTS: readonly { says: RegExp; means: string; isFatal: boolean }[] = [
  {
    says: /local variable 'torch'|ImageGenerator' object has no attribute/,
    means: 'The version as published fails in this way for every edit. Run a patched fork of it.',
    isFatal: true,
  },
  {
    says: /os\.PathLike object, not NoneType/,
    means: 'It did not find its weights. Set DIT_PATH and AE_PATH to the files, and QWEN2VL_PATH, under `env`.',
    isFatal: true,
  },
  {
    says: /found at least two devices/,
    means: 'Its own idle timer moved the weights away in the middle of the edit. Set GPU_IDLE_TIMEOUT to 86400.',
    isFatal: false,
  },
];

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
    whyNotOffload: () => undefined,
    isWorking: () => Promise.resolve(false), // one at work does not answer, so the offload waits for it
    offload,
    wake: () => Promise.resolve(), // the next edit does it
    isFatalStart: ({ exitCode, logText, hadForeignGrowth }) =>
      exitCode === 2 ||
      (isOutOfMemory(logText) && !hadForeignGrowth) ||
      DEFECTS.some(({ says, isFatal }) => isFatal && says.test(logText)),
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
  const health = await answerOrUndefined(`${url}/health`, { signal, deadlineMs });
  if (health?.status !== 200) return undefined;
  for (const paths of [UNIFIED_PATHS, API_PATHS]) {
    const status = await answerOrUndefined(`${url}${paths}/status`, { signal, deadlineMs });
    if (status === undefined) return undefined; // an edit of somebody else keeps it silent
    if (status.status !== 404) return { servedName: model.id, paths };
  }
  const message = `What answers at ${url} is no Step1X-Edit: it has neither ${UNIFIED_PATHS}/status nor ${API_PATHS}/status.`;
  throw new AppError('MODEL_FAILED', `${message} Correct \`attach\` or \`command\`.`);
}

/** Silence is no death: it answers nothing while it edits. Refusing the connection is. */
async function isHealthy({ url, ...options }: Parameters<Engine['isHealthy']>[0]): Promise<boolean> {
  try {
    return (await callEngine(`${url}/health`, options)).status === 200;
  } catch (error) {
    options.signal.throwIfAborted();
    return error instanceof DOMException && error.name === 'TimeoutError';
  }
}

async function finishLoad(call: Call): Promise<void> {
  try {
    await edit({ fields: FIRST_EDIT, input: SMALL_PICTURE, call: { ...call, sink: NOWHERE } });
  } catch (error) {
    if (call.facts.isLatin1Only !== true) throw error;
    // It has done the work and could only not say so: the weights are there.
  }
}

async function run(
  request: JobRequest,
  inputs: readonly Buffer[],
  call: Call & { sink: ImageSink },
): ReturnType<Engine['run']> {
  const [input] = inputs;
  if (request.kind !== 'edit' || input === undefined || inputs.length > 1) {
    throw new AppError(
      'INVALID_ARGUMENT',
      'Step1X-Edit edits exactly one picture and generates none. Use another model.',
    );
  }
  // Another host may have another version, so the job is not refused for good.
  if (call.facts.isLatin1Only === true && BEYOND_LATIN1.test(request.prompt)) {
    throw new AppError('ENGINE_FAILED', `The prompt was not sent. ${LATIN1_ONLY}`);
  }
  const fields = {
    // The prompt comes back in a header, which cannot have line breaks.
    prompt: request.prompt.replaceAll(/[\r\n]+/g, ' '),
    num_steps: String(request.steps),
    guidance_scale: String(request.guidance.value),
    size_level: String(request.sizeLevel ?? 1024),
    seed: String(request.seed),
  };
  await edit({ fields, input, call });
  const notes = request.negativePrompt === undefined ? [] : ['Step1X-Edit takes no negative prompt; it was ignored.'];
  if (fields.prompt !== request.prompt) notes.push('Line breaks in the prompt were sent as spaces.');
  return { notes };
}

function edit({
  fields,
  input,
  call,
}: {
  fields: Record<string, string>;
  input: Buffer;
  call: Call & { sink: ImageSink };
}): Promise<void> {
  const form = multipart(fields, [{ name: 'file', fileName: 'input.png', bytes: input }]);
  const { signal, deadlineMs, sink } = call;
  const errorOf = (answer: EngineAnswer): AppError => editError(answer, call.facts);
  // The unified server answers the picture itself, the other one JSON.
  const options = { method: 'POST' as const, ...form, signal, deadlineMs, sink, field: 'image_base64', errorOf };
  return callForImage(`${call.url}/api/edit`, options);
}

function editError(answer: EngineAnswer, facts: ServerFacts): AppError {
  const said = errorText(answer.body.toString('utf8'));
  if (/'latin-1' codec can't encode/.test(said)) {
    facts.isLatin1Only = true;
    return new AppError('ENGINE_FAILED', `The engine answered ${answer.status}: ${said}. ${LATIN1_ONLY}`);
  }
  const defect = DEFECTS.find(({ says }) => says.test(said));
  if (defect === undefined) return engineError(answer);
  return new AppError('ENGINE_FAILED', `The engine answered ${answer.status}: ${said}. ${defect.means}`);
}

/** Its answer is a claim, also in versions where nothing was moved: nvidia-smi decides. */
async function offload({ url, facts, signal, deadlineMs }: Call): Promise<void> {
  // Where somebody restarted it as the other of the two servers, the paths are the other ones.
  const first = facts.paths ?? UNIFIED_PATHS;
  for (const paths of [first, first === UNIFIED_PATHS ? API_PATHS : UNIFIED_PATHS]) {
    const answer = await callEngine(`${url}${paths}/offload`, { method: 'POST', signal, deadlineMs });
    if (answer.status === 404 && paths === first) continue;
    if (answer.status !== 200) throw engineError(answer);
    facts.paths = paths;
    return;
  }
}
