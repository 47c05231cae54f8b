import { type Answer, type Asked, formOf, json } from './http-server.ts';
import type { GpuStatus, Step1xEngine } from './step1x-engine.ts';
import type { Step1xOptions } from './step1x-options.ts';

export type Step1xContext = { engine: Step1xEngine; options: Step1xOptions; host: string; gpu: string };

type Route = (asked: Asked, context: Step1xContext) => Answer | Promise<Answer>;
type Edited = { image: Buffer; seconds: number; form: EditForm };
type EditForm = {
  file: File;
  prompt: string;
  num_steps: number;
  guidance_scale: number;
  size_level: number;
  seed: number | null;
};

/** unified_server.py, the default: everything below /api, and the picture itself as the answer. */
const UNIFIED: Record<string, Route> = {
  'GET /': () => ({
    status: 200,
    headers: { 'content-type': 'text/html; charset=utf-8' },
    body: '<h1>Step1X-Edit</h1>',
  }),
  'GET /health': () => json(200, { status: 'healthy', timestamp: Date.now() / 1000, gpu_available: true }),
  'GET /api/gpu/status': (_, { engine }) => json(200, withoutMonitor(engine.status())),
  'POST /api/gpu/offload': (_, { engine }) => {
    engine.offload();
    const gpu_status = engine.status();
    return json(200, {
      success: true,
      message: `GPU offloaded. Model now on ${gpu_status.model_location}`,
      gpu_status,
    });
  },
  'POST /api/gpu/release': (_, { engine }) => {
    engine.release();
    return json(200, { success: true, message: 'GPU fully released', gpu_status: engine.status() });
  },
  'POST /api/edit': async (asked, context) => pictureAnswer(await edit(asked, context), context.options),
};

/** api.py: other paths, and the picture inside JSON. */
const API: Record<string, Route> = {
  'GET /': () => json(200, { name: 'Step1X-Edit API', version: '1.0.0', docs: '/docs', health: '/health' }),
  'GET /health': () => json(200, { status: 'healthy', cuda_available: true, gpu_count: 1, manager_initialized: true }),
  'GET /gpu/status': (_, { engine }) => json(200, engine.status()),
  'POST /gpu/offload': (_, { engine }) => {
    engine.offload();
    return json(200, { success: true, message: `GPU offloaded. Model now on ${memoryText(engine)}` });
  },
  'POST /gpu/release': (_, { engine }) => {
    engine.release();
    return json(200, { success: true, message: `GPU released. Model location: ${memoryText(engine)}` });
  },
  'POST /api/edit': async (asked, context) => jsonAnswer(await edit(asked, context), context),
  'POST /api/edit-file': async (asked, context) => {
    const { image, form } = await edit(asked, context);
    const disposition = `attachment; filename=edited_${form.file.name}`;
    return { status: 200, headers: { 'content-type': 'image/png', 'content-disposition': disposition }, body: image };
  },
};

/**
 * Answers one request at a time, /health included, because the handlers block the only thread there is.
 * With --async-health everything that is no edit is answered at once.
 */
export class Step1xApi {
  readonly #context: Step1xContext;
  #thread: Promise<unknown> = Promise.resolve();

  constructor(context: Step1xContext) {
    this.#context = context;
  }

  answer(asked: Asked): Promise<Answer> {
    const isFree = this.#context.options.answersDuringEdits && !asked.path.startsWith('/api/edit');
    if (isFree) return this.#route(asked);
    const turn = this.#thread.then(() => this.#route(asked));
    this.#thread = turn;
    return turn;
  }

  async #route(asked: Asked): Promise<Answer> {
    const routes = this.#context.options.server === 'api' ? API : UNIFIED;
    const route = routes[`${asked.request.method} ${asked.path}`];
    const isPath = Object.keys(routes).some((name) => name.split(' ')[1] === asked.path);
    if (!route) return isPath ? json(405, { detail: 'Method Not Allowed' }) : json(404, { detail: 'Not Found' });
    try {
      return await route(asked, this.#context);
    } catch (error) {
      if (error instanceof Invalid) return json(422, { detail: error.complaints });
      return json(500, { detail: error instanceof Error ? error.message : String(error) });
    }
  }
}

async function edit({ request }: Asked, { engine, host, gpu }: Step1xContext): Promise<Edited> {
  const startedMs = performance.now();
  const form = editForm(await formOf(request).catch(() => new FormData())); // no form: every field is missing
  const facts = {
    prompt: form.prompt,
    seed: form.seed ?? Math.floor(Math.random() * 2 ** 32),
    steps: form.num_steps,
    model: 'Step1X-Edit',
    host,
    gpu,
  };
  const input = Buffer.from(await form.file.arrayBuffer());
  const image = await engine.edit(facts, input, { sizeLevel: form.size_level });
  return { image, form, seconds: (performance.now() - startedMs) / 1000 };
}

/** The bug of the published server: the prompt goes into a header as it is, after the work is done. */
function pictureAnswer({ image, seconds, form }: Edited, { hasPromptHeader }: Step1xOptions): Answer {
  const headers = { 'content-type': 'image/png', 'x-processing-time': seconds.toFixed(4) };
  if (!hasPromptHeader) return { status: 200, headers, body: image };
  const outside = [...form.prompt].findIndex((character) => character > '\u00ff');
  if (outside >= 0) {
    throw new Error(
      `'latin-1' codec can't encode characters in position ${outside}-${outside}: ordinal not in range(256)`,
    );
  }
  // A line break passes the framework, and uvicorn refuses to send it.
  if (/[\r\n\0]/.test(form.prompt)) {
    return { status: 500, headers: { 'content-type': 'text/plain; charset=utf-8' }, body: 'Internal Server Error' };
  }
  return { status: 200, headers: { ...headers, 'x-prompt': form.prompt }, body: image };
}

function jsonAnswer({ image, seconds, form }: Edited, { engine }: Step1xContext): Answer {
  const { file: _, ...fields } = form;
  return json(200, {
    success: true,
    message: 'Image edited successfully',
    processing_time: Math.round(seconds * 10_000) / 10_000,
    image_base64: image.toString('base64'),
    metadata: { ...fields, gpu_location: engine.status().model_location },
  });
}

function withoutMonitor({ idle_timeout: _, auto_monitor_running: __, ...status }: GpuStatus): object {
  return status;
}

function memoryText(engine: Step1xEngine): string {
  const { model_location, gpu_memory_allocated_gb } = engine.status();
  return `${model_location}, GPU memory: ${gpu_memory_allocated_gb.toFixed(2)}GB`;
}

class Invalid extends Error {
  readonly complaints: object[];

  constructor(complaints: object[]) {
    super('invalid form');
    this.complaints = complaints;
  }
}

/** FastAPI's reading of the form: types are checked, ranges are not. */
function editForm(form: FormData): EditForm {
  const complaints: object[] = [];
  const complain = (type: string, name: string, msg: string, input: unknown): void => {
    complaints.push({ type, loc: ['body', name], msg, input });
  };
  const number = (name: string, isInteger: boolean): number | null => {
    const text = form.get(name);
    if (text === null || text === '') return null;
    const value = Number(text);
    if (Number.isFinite(value) && (!isInteger || Number.isInteger(value))) return value;
    const [type, word] = isInteger ? ['int_parsing', 'integer'] : ['float_parsing', 'number'];
    complain(type, name, `Input should be a valid ${word}, unable to parse string as an ${word}`, text);
    return null;
  };
  const file = form.get('file');
  const prompt = form.get('prompt');
  if (!(file instanceof File)) complain('missing', 'file', 'Field required', null);
  if (typeof prompt !== 'string') complain('missing', 'prompt', 'Field required', null);
  const fields = {
    num_steps: number('num_steps', true) ?? 28,
    guidance_scale: number('guidance_scale', false) ?? 6,
    size_level: number('size_level', true) ?? 1024,
    seed: number('seed', true),
  };
  if (!(file instanceof File) || typeof prompt !== 'string' || complaints.length > 0) throw new Invalid(complaints);
  return { file, prompt, ...fields };
}
