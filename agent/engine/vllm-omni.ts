import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Call, Engine, EngineAnswer, ServerFacts } from './engine.ts';
import {
  HOST,
  OtherModel,
  answerOrUndefined,
  callEngine,
  engineError,
  errorText,
  isHealthy,
  isOutOfMemory,
  keyWanted,
  parse,
} from './engine.ts';
import { callForImage } from './image-answer.ts';
import type { ImageSink } from './image-answer.ts';
import { multipart } from './multipart.ts';

/** Pure diffusion models have one stage. Without `level` the engine takes 2, which destroys it. */
const SLEEP_BODY = JSON.stringify({ stage_ids: [0], level: 1 });
const WAKE_BODY = JSON.stringify({ stage_ids: [0] });
const METRICS_MS = 2_000;
const JSON_HEADERS = { 'content-type': 'application/json' };

/** Flags that spread one server over several GPUs; where the configuration has one, we add none. */
const PARALLEL_FLAGS = [
  '--tensor-parallel-size',
  '-tp',
  '--usp',
  '--ulysses-degree',
  '--ring',
  '--cfg-parallel-size',
  '--num-gpus',
  '--use-hsdp',
];

const Models = z.object({ data: z.array(z.object({ id: z.string() })).min(1) });
const Version = z.object({ version: z.string() });
const Ack = z.object({ status: z.string(), error_msg: z.string().nullish() });
const Acks = z.object({ status: z.string(), acks: z.array(Ack).optional() });

/** vLLM-Omni: `vllm serve MODEL --omni`, images over /v1/images, offload by sleep level 1. */
export function vllmOmni(): Engine {
  return {
    kind: 'vllm-omni',
    wakesBy: 'call',
    command,
    probe,
    finishLoad: () => Promise.resolve(), // the server answers only once its weights are on the GPU
    isHealthy,
    run,
    whyNotOffload,
    isWorking,
    offload: (call) => sleepOrWake('/v1/omni/sleep', SLEEP_BODY, call),
    wake: (call) => sleepOrWake('/v1/omni/wakeup', WAKE_BODY, call),
    isFatalStart: ({ exitCode, logText, hadForeignGrowth }) =>
      exitCode === 2 || (isOutOfMemory(logText) && !hadForeignGrowth) || UNKNOWN_MODEL.test(logText),
  };
}

/** Models of several stages, and the flags that only those have. */
const STAGED_MODELS = /(^|\/)(GLM-Image|HunyuanImage-3)/i;
const STAGE_FLAGS = /^--(deploy-config|stage-overrides|stage-\d+-)/;
const UNKNOWN_MODEL = /RepositoryNotFoundError|RevisionNotFoundError|GatedRepoError|is not a valid model identifier/;

/** After a wake the admission of a model with several stages stays closed, and its requests hang. */
function whyNotOffload({ id, launch }: ConfiguredModel): string | undefined {
  const hasStages = launch.kind === 'owned' && launch.args.some((arg) => STAGE_FLAGS.test(arg));
  return hasStages || STAGED_MODELS.test(id)
    ? 'it has several stages, and does not work any more after a wake'
    : undefined;
}

/** A hint: only servers with statistics tell. */
async function isWorking({ url, signal }: Call): Promise<boolean> {
  const answer = await answerOrUndefined(`${url}/metrics`, { signal, deadlineMs: METRICS_MS });
  if (answer?.status !== 200) return false;
  const counts = answer.body
    .toString('utf8')
    .matchAll(/^vllm[_:]omni[_:]num_requests_(?:running|waiting)\S* ([\d.]+)/gm);
  return [...counts].some(([, count]) => Number(count) > 0);
}

function command({ model, port }: { model: ConfiguredModel; port: number }): ReturnType<Engine['command']> {
  const { launch } = model;
  if (launch.kind !== 'owned') throw new Error(`${model.alias} is attached: it has no command`);
  const [repository, revision] = splitId(model.id);
  const isSpread = launch.args.some((arg) => PARALLEL_FLAGS.includes(arg.split('=')[0] ?? ''));
  const argv = [
    ...launch.command,
    repository,
    '--omni',
    // Without a host it would listen on all interfaces, and its key guards only a part of its paths.
    ...['--host', HOST, '--port', String(port), '--served-model-name', model.id],
    ...(revision === undefined ? [] : ['--revision', revision]),
    ...(model.offload === 'none' || whyNotOffload(model) !== undefined ? [] : ['--enable-sleep-mode']),
    '--log-stats',
    ...(model.gpuCount > 1 && !isSpread ? ['--tensor-parallel-size', String(model.gpuCount)] : []),
    ...launch.args,
  ];
  return { argv, env: {} };
}

/** `repository@revision`; a local path may have an @ in a directory, but not behind the last slash. */
export function splitId(id: string): [repository: string, revision: string | undefined] {
  const match = /^(.+)@([^/@]+)$/.exec(id);
  return match?.[1] === undefined ? [id, undefined] : [match[1], match[2]];
}

/** Ready = /health is 200 and /v1/models lists our name. The health body is empty or not, depending on the version. */
async function probe({
  url,
  model,
  signal,
  deadlineMs,
}: Parameters<Engine['probe']>[0]): Promise<ServerFacts | undefined> {
  if (!(await isHealthy({ url, signal, deadlineMs }))) return undefined;
  const listed = await answerOrUndefined(`${url}/v1/models`, { signal, deadlineMs });
  const wanted = listed && keyWanted(url, listed);
  if (wanted !== undefined) throw wanted;
  const models = listed?.status === 200 ? Models.safeParse(parse(listed.body.toString('utf8'))) : undefined;
  if (models?.success !== true) return undefined;
  const names = models.data.data.map(({ id }) => id);
  const [repository] = splitId(model.id);
  const [servedName] = names;
  if (servedName === undefined || !names.some((name) => name === model.id || name === repository)) {
    throw new OtherModel(
      'MODEL_FAILED',
      `The server at ${url} serves ${names.join(', ')}, not ${model.id}. Correct \`model\`.`,
    );
  }
  const answered = await answerOrUndefined(`${url}/version`, { signal, deadlineMs });
  const version = answered?.status === 200 ? Version.safeParse(parse(answered.body.toString('utf8'))) : undefined;
  // Image routes accept only the first name.
  return { servedName, ...(version?.success === true && { version: version.data.version }) };
}

async function run(
  request: JobRequest,
  inputs: readonly Buffer[],
  call: Call & { sink: ImageSink },
): ReturnType<Engine['run']> {
  const { signal, deadlineMs, sink } = call;
  const errorOf = (answer: EngineAnswer): AppError => noImages(call.url, answer) ?? engineError(answer);
  const common = { signal, deadlineMs, sink, method: 'POST' as const, field: 'b64_json', errorOf };
  await (request.kind === 'generate'
    ? callForImage(`${call.url}/v1/images/generations`, {
        ...common,
        headers: JSON_HEADERS,
        body: JSON.stringify({ ...parameters(request, call), n: 1, seed: request.seed }),
      })
    : callForImage(`${call.url}/v1/images/edits`, {
        ...common,
        ...multipart(
          texts({ ...parameters(request, call), n: 1, seed: request.seed }),
          inputs.map((bytes, at) => ({ name: 'image', fileName: `input-${at + 1}.png`, bytes })),
        ),
      }));
  return { notes: [] };
}

/** A vLLM for texts has the same /health and /v1/models, but no route for images. */
function noImages(url: string, { status, body }: EngineAnswer): AppError | undefined {
  if (status !== 404 || errorText(body.toString('utf8')) !== 'Not Found') return undefined;
  const message = `The server at ${url} makes no images (404). Start it with \`vllm serve MODEL --omni\` and an image model.`;
  return new AppError('MODEL_FAILED', message);
}

/** All at the top level: the route ignores what is nested, and every key it does not know. */
function parameters(request: JobRequest, { facts }: Call): Record<string, string | number | undefined> {
  const { width, height } = request;
  return {
    model: facts.servedName,
    prompt: request.prompt,
    negative_prompt: request.negativePrompt,
    size: width !== undefined && height !== undefined ? `${width}x${height}` : 'auto',
    num_inference_steps: request.steps,
    [request.guidance.field]: request.guidance.value,
    response_format: 'b64_json',
    output_format: 'png',
  };
}

function texts(fields: Record<string, string | number | undefined>): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, value?.toString()]));
}

/** The outer status is always SUCCESS; only the acknowledgements of the workers tell. */
async function sleepOrWake(path: string, body: string, { url, signal, deadlineMs }: Call): Promise<void> {
  const answer = await callEngine(`${url}${path}`, { method: 'POST', headers: JSON_HEADERS, body, signal, deadlineMs });
  if (answer.status !== 200) throw engineError(answer);
  const parsed = Acks.safeParse(parse(answer.body.toString('utf8')));
  if (!parsed.success) throw new AppError('ENGINE_FAILED', `The engine's answer to ${path} is not understood.`);
  const refused = parsed.data.acks?.find(({ status }) => status !== 'SUCCESS');
  if (refused === undefined) return;
  const code = isOutOfMemory(refused.error_msg ?? '') ? 'GPU_OUT_OF_MEMORY' : 'ENGINE_FAILED';
  throw new AppError(
    code,
    `A worker of the engine answered ${path} with ${refused.status}: ${refused.error_msg ?? 'no reason'}.`,
  );
}
