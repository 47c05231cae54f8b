import type { Answer, Asked } from './http-server.ts';
import { bodyOf, json } from './http-server.ts';
import { edits, generations, type ImageContext } from './omni-images.ts';
import { ApiError, envelope, errorAnswer, invalid } from './omni-errors.ts';

type Route = (asked: Asked, context: ImageContext) => Answer | Promise<Answer>;

const ROUTES: Record<string, Partial<Record<'GET' | 'POST', Route>>> = {
  '/health': { GET: (_, context) => health(context) },
  '/version': { GET: (_, { options }) => json(200, { version: options.vllmVersion }) },
  '/metrics': { GET: (_, context) => metrics(context) },
  '/v1/models': { GET: (_, context) => models(context) },
  '/v1/images/generations': { POST: generations },
  '/v1/images/edits': { POST: edits },
  '/v1/omni/sleep': { POST: sleep },
  '/v1/omni/wakeup': { POST: wakeUp },
};

/** The routes that the start log lists. */
export const ROUTE_LIST = Object.entries(ROUTES).map(
  ([path, methods]) => `Route: ${path}, Methods: ${Object.keys(methods).join(', ')}`,
);

/** Everything that vLLM-Omni answers over HTTP for a pure diffusion model; never throws. */
export async function answer(asked: Asked, context: ImageContext): Promise<Answer> {
  const { path, request } = asked;
  const { apiKey } = context.options;
  // Only paths below /v1 are guarded, and this one body is no envelope.
  if (apiKey !== undefined && path.startsWith('/v1') && request.headers.authorization !== `Bearer ${apiKey}`) {
    return json(401, { error: 'Unauthorized' });
  }
  const methods = ROUTES[path];
  if (!methods) return envelope(404, 'Not Found');
  const method = request.method === 'GET' || request.method === 'POST' ? request.method : undefined;
  const route = method && methods[method];
  if (!route) return envelope(405, 'Method Not Allowed');
  try {
    return await route(asked, context);
  } catch (error) {
    const isEdit = path.endsWith('/edits');
    // Their handler of failed edits looks for a field that the failure does not have.
    if (isEdit && context.options.isMultiStage && !(error instanceof ApiError)) {
      return envelope(500, "'ErrorResponse' object has no attribute 'message'");
    }
    return errorAnswer(error, isEdit ? 'edit' : 'generation');
  }
}

/** Asleep or at work it is healthy all the same; judge it by the status, for the body came and went. */
function health({ engine, options }: ImageContext): Answer | Promise<Answer> {
  const wanted = engine.counts.finished >= options.healthFrom ? options.health : '200';
  if (wanted === 'hang') return new Promise(() => undefined);
  const status = engine.death.aborted || wanted === '503' ? 503 : 200;
  if (options.healthBody === 'empty') return { status, body: '' };
  if (status === 200) return json(200, { status: 'healthy' });
  return json(503, { status: 'unhealthy', ...(!engine.death.aborted && { reason: 'No engine initialized' }) });
}

function models({ options }: ImageContext): Answer {
  const created = Math.floor(Date.now() / 1000);
  const card = (id: string) => ({
    id,
    object: 'model',
    created,
    owned_by: 'vllm',
    root: options.model,
    parent: null,
    max_model_len: null,
    permission: [],
  });
  return json(200, { object: 'list', data: options.servedNames.map(card) });
}

/** Series of our kind exist with --log-stats only, and did not always. */
function metrics({ engine, options }: ImageContext): Answer {
  const { running, waiting, finished } = engine.counts;
  const { countsWaitingAsRunning, metricsPrefix, servedNames } = options;
  const label = `{model_name="${servedNames[0]}"}`;
  const series = [
    ['num_requests_running', 'gauge', label, running + (countsWaitingAsRunning ? waiting : 0)],
    ['num_requests_waiting', 'gauge', label, countsWaitingAsRunning ? 0 : waiting],
    ['requests_success_total', 'counter', `{finished_reason="stop",model_name="${servedNames[0]}"}`, finished],
  ] as const;
  const prefix = metricsPrefix === 'vllm:omni' ? 'vllm:omni_' : 'vllm_omni:';
  const lines =
    options.hasStats && metricsPrefix !== 'none'
      ? series.flatMap(([name, type, labels, value]) => [
          `# TYPE ${prefix}${name} ${type}`,
          `${prefix}${name}${labels} ${value}.0`,
        ])
      : [];
  const python = ['# TYPE python_info gauge', 'python_info{implementation="CPython",major="3",minor="12"} 1.0'];
  const headers = { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' };
  return { status: 200, headers, body: `${[...python, ...lines].join('\n')}\n` };
}

/** `level` is 2 unless it is said: the trap that destroys the engine. */
async function sleep({ request }: Asked, { engine }: ImageContext): Promise<Answer> {
  const { level } = await stagesBody(request);
  const acknowledgement = await orPlain500(engine.sleep(level));
  return json(200, { status: 'SUCCESS', acks: [acknowledgement] });
}

async function wakeUp({ request }: Asked, { engine }: ImageContext): Promise<Answer> {
  await stagesBody(request);
  const acknowledgement = await orPlain500(engine.wake());
  if (!acknowledgement) return json(200, { status: 'SKIPPED', reason: 'Target stages are not sleeping.' });
  return json(200, { status: 'SUCCESS', acks: [acknowledgement] });
}

/** Failures of these routes carry their text alone, without the words of the image routes. */
async function orPlain500<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw new ApiError(500, error instanceof Error ? error.message : String(error));
  }
}

async function stagesBody(request: Asked['request']): Promise<{ level: number }> {
  let body: { stage_ids?: unknown; level?: unknown };
  try {
    body = JSON.parse((await bodyOf(request)).toString('utf8')) as typeof body; // `any` by its own type, checked below
  } catch {
    throw invalid([{ type: 'json_invalid', loc: ['body'], msg: 'JSON decode error', input: {} }]);
  }
  if (!Array.isArray(body.stage_ids)) {
    throw invalid([{ type: 'missing', loc: ['body', 'stage_ids'], msg: 'Field required', input: body }]);
  }
  const level = body.level ?? 2;
  if (level === 1 || level === 2) return { level };
  throw invalid([{ type: 'literal_error', loc: ['body', 'level'], msg: 'Input should be 1 or 2', input: level }]);
}
