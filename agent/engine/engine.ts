import type { ErrorCode } from '../../shared/errors.ts';
import { AppError } from '../../shared/errors.ts';
import { openHttp, readBody } from '../../shared/http-client.ts';
import type { HttpOptions } from '../../shared/http-client.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { ImageSink } from './image-answer.ts';

/** What a server said about itself when it became ready. */
export type ServerFacts = {
  /** The one name its image routes accept. */
  servedName: string;
  version?: string;
  /** Where the engine has servers that differ in their paths: which of them this is. */
  paths?: string;
  /** It fails for every prompt with other than Latin-1 characters, after the work. Found out while it works. */
  isLatin1Only?: boolean;
};

export type Call = { url: string; facts: ServerFacts; signal: AbortSignal; deadlineMs: number };

/**
 * One kind of server software: its command line, its calls, its words for failure. Stateless: what it learns about a
 * server is in `ServerFacts`, kept by whoever owns the server. What an engine says about memory is a claim; nvidia-smi
 * tells the fact.
 */
export type Engine = {
  kind: ConfiguredModel['engine'];
  /** How an offloaded server comes back: by a call before the job, or by the job itself. */
  wakesBy: 'call' | 'job';
  command(o: { model: ConfiguredModel; port: number }): { argv: string[]; env: Record<string, string> };
  /** Undefined while it does not answer as a ready server of this model. Throws when it answers as another one. */
  probe(o: {
    url: string;
    model: ConfiguredModel;
    signal: AbortSignal;
    deadlineMs: number;
  }): Promise<ServerFacts | undefined>;
  /** Brings the weights onto the GPU where starting the server does not. */
  finishLoad(call: Call): Promise<void>;
  isHealthy(o: { url: string; signal: AbortSignal; deadlineMs: number }): Promise<boolean>;
  /** Sends one request and gives the picture to the sink. Resolves at its last byte. */
  run(request: JobRequest, inputs: readonly Buffer[], call: Call & { sink: ImageSink }): Promise<{ notes: string[] }>;
  /** Why this model must not be offloaded, for a person; undefined where it may be. */
  whyNotOffload(model: ConfiguredModel): string | undefined;
  /** It works for somebody, as far as it tells. Offloading it now would break that work, or the server. */
  isWorking(call: Call): Promise<boolean>;
  offload(call: Call): Promise<void>;
  wake(call: Call): Promise<void>;
  /**
   * Another start would fail in the same way. `logText` is what the start was ended for, with the end of the log.
   * `hadForeignGrowth`: programs that are not ours took GPU memory meanwhile, and may give it back.
   */
  isFatalStart(o: { exitCode: number | null; logText: string; hadForeignGrowth: boolean }): boolean;
};

/**
 * The server is not as we know it, and its answer says what helps: ask it again who it is, wake it, or end it. After the
 * first two the same request may be sent once more.
 */
export class OutOfStep extends AppError {
  readonly remedy: 'refresh' | 'wake' | 'end';

  constructor(code: ErrorCode, message: string, remedy: OutOfStep['remedy']) {
    super(code, message);
    this.remedy = remedy;
  }
}

/** What answers is well, but it is another model: nothing of ours, and not to be ended for it. */
export class OtherModel extends AppError {}

/** Images would fail as well, and there is no key here to send. */
export function keyWanted(url: string, { status }: EngineAnswer): AppError | undefined {
  if (status !== 401 && status !== 403) return undefined;
  return new AppError(
    'MODEL_FAILED',
    `The server at ${url} wants an API key (${status}), and gantry sends none. Start it without \`--api-key\` and ` +
      'VLLM_API_KEY, on a loopback address, where nobody else reaches it.',
  );
}

export const HOST = '127.0.0.1';
export const SMALL_BODY_BYTES = 1024 * 1024;
const CALL_MS = 5_000;

export type EngineAnswer = { status: number; type: string; body: Buffer; location?: string | undefined };

/** One call with a small answer. */
export async function callEngine(
  url: string,
  options: Partial<HttpOptions> & { signal: AbortSignal },
): Promise<EngineAnswer> {
  const answer = await openHttp(url, { deadlineMs: CALL_MS, ...options });
  const body = await readBody(answer, { maxBytes: SMALL_BODY_BYTES });
  const { location, 'content-type': type = '' } = answer.headers;
  return { status: answer.status, type, body, location };
}

/** Judged by the status code alone: the bodies of /health differ between engines and versions. */
export async function isHealthy({ url, ...options }: Parameters<Engine['isHealthy']>[0]): Promise<boolean> {
  return (await answerOrUndefined(`${url}/health`, options))?.status === 200;
}

/** One call to a server that may not be up: undefined where nobody answers. Rejects only when its signal aborts. */
export async function answerOrUndefined(
  url: string,
  options: { signal: AbortSignal; deadlineMs: number },
): Promise<EngineAnswer | undefined> {
  try {
    return await callEngine(url, options);
  } catch {
    options.signal.throwIfAborted();
    return undefined; // refused, reset or silent: not up
  }
}

/** Out of memory comes as a 500 with one of these in its text. A word of its own: prompts have rooms and zooms. */
export function isOutOfMemory(text: string): boolean {
  return isShortOfMemory(text) || /cuda error/i.test(text);
}

/** Memory was short, as opposed to a CUDA context that broke for another reason. */
export function isShortOfMemory(text: string): boolean {
  return /out of ?memory|\boom\b|cublas_status_alloc_failed/i.test(text);
}

/** What an engine's error answer means. */
export function engineError({ status, body }: EngineAnswer): AppError {
  const said = errorText(body.toString('utf8'));
  if (isShortOfMemory(said)) {
    return new AppError('GPU_OUT_OF_MEMORY', `The engine ran out of GPU memory: ${said}`);
  }
  if (isOutOfMemory(said)) {
    const message = `The engine's CUDA context broke: ${said}. Its server is ended and started anew.`;
    return new OutOfStep('GPU_OUT_OF_MEMORY', message, 'end');
  }
  if (/Model mismatch/.test(said)) {
    return new OutOfStep('MODEL_FAILED', `The server runs another model: ${said} Load the model again.`, 'refresh');
  }
  if (/engine is partially or fully asleep/i.test(said)) {
    return new OutOfStep('ENGINE_FAILED', `Somebody else has put the engine to sleep: ${said}`, 'wake');
  }
  if (status === 400 || status === 422) {
    return new AppError('INVALID_ARGUMENT', `The engine refused the request (${status}): ${said}`);
  }
  return new AppError('ENGINE_FAILED', `The engine answered ${status}: ${said}`);
}

/** `{error: {message}}`, `{error: text}`, `{detail: text}` and `{detail: [{loc, msg}]}`, else the start of the body. */
export function errorText(body: string): string {
  return cut(messageOf(parse(body)) ?? (body.trim() === '' ? 'no explanation' : body.trim()));
}

function messageOf(value: unknown): string | undefined {
  if (!isRecord(value)) return undefined;
  const { error, detail } = value;
  if (typeof error === 'string') return error;
  if (isRecord(error) && typeof error.message === 'string') return error.message;
  if (typeof detail === 'string') return detail;
  if (!Array.isArray(detail)) return undefined;
  return detail
    .filter(isRecord)
    .map(({ loc, msg }) => `${Array.isArray(loc) ? loc.join('.') : 'request'}: ${String(msg)}`)
    .join('; ');
}

export function parse(body: string): unknown {
  try {
    return JSON.parse(body) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // not JSON: the caller shows it as text
  }
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function cut(text: string): string {
  return text.length > 500 ? `${text.slice(0, 500)}…` : text;
}
