import { readFile, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { PictureFacts } from './picture.ts';
import type { Step1xEngine } from './step1x-engine.ts';

type Arguments = Record<string, unknown>;
type Context = { engine: Step1xEngine; facts: Omit<PictureFacts, 'prompt' | 'seed' | 'steps'>; print: Print };
/** To standard output, where it stands between the messages of the protocol. */
type Print = (text: string) => void;

/**
 * mcp_server.py: the engine as five tools over standard input and output, with a model of its own.
 * No answer is ever an MCP error; a failure is a status inside a good answer. Resolves when the client has gone.
 */
export async function serveMcp(o: Omit<Context, 'print'> & { hasStrayPrints: boolean }): Promise<void> {
  // Loaded here, because nobody else who starts this program should wait for the SDK.
  const [{ Server }, { StdioServerTransport }, { CallToolRequestSchema, ListToolsRequestSchema }] = await Promise.all([
    import('@modelcontextprotocol/sdk/server/index.js'),
    import('@modelcontextprotocol/sdk/server/stdio.js'),
    import('@modelcontextprotocol/sdk/types.js'),
  ]);
  const print: Print = (text) => o.hasStrayPrints && process.stdout.write(`${text}\n`);
  const context = { ...o, print };
  const server = new Server({ name: 'step1x-edit', version: '1.0.0' }, { capabilities: { tools: {} } });
  server.setRequestHandler(ListToolsRequestSchema, () => ({
    tools: Object.keys(TOOLS).map((name) => ({ name, inputSchema: { type: 'object' as const } })),
  }));
  let turn: Promise<unknown> = Promise.resolve();
  server.setRequestHandler(CallToolRequestSchema, ({ params }) => {
    // The functions of the original block the only thread.
    const answer = turn.then(() => call(params.name, params.arguments ?? {}, context));
    turn = answer;
    return answer;
  });
  const ended = new Promise((resolve) => process.stdin.once('end', resolve));
  await server.connect(new StdioServerTransport());
  await ended;
}

async function call(name: string, args: Arguments, context: Context) {
  const tool = TOOLS[name];
  const result = tool
    ? await tool(args, context).catch((error: unknown) => failure(error))
    : failure(new Error(`Unknown tool: ${name}`));
  return { content: [{ type: 'text' as const, text: JSON.stringify(result) }], isError: false };
}

function failure(error: unknown): object {
  return { status: 'error', error: error instanceof Error ? error.message : String(error) };
}

const TOOLS: Record<string, (args: Arguments, context: Context) => Promise<object>> = {
  edit_image: editImage,
  batch_edit_images: editBatch,
  get_gpu_status: async (_, { engine }) => ({ status: 'success', gpu_status: engine.status() }),
  offload_gpu: async (_, { engine }) => {
    engine.offload();
    const gpu_status = engine.status();
    return { status: 'success', message: `GPU offloaded. Model now on ${gpu_status.model_location}`, gpu_status };
  },
  release_gpu: async (_, { engine }) => {
    engine.release();
    return { status: 'success', message: 'GPU fully released', gpu_status: engine.status() };
  },
};

/** Writes next to its input, over whatever stands there. */
async function editImage(args: Arguments, { engine, facts, print }: Context): Promise<object> {
  const startedMs = performance.now();
  const path = textOf(args, 'image_path');
  const wanted = args['output_path'];
  const outputPath = typeof wanted === 'string' ? wanted : join(dirname(path), `output_${basename(path)}`);
  const seed = args['seed'];
  const fields = {
    prompt: textOf(args, 'prompt'),
    num_steps: numberOf(args, 'num_steps', 28),
    guidance_scale: numberOf(args, 'guidance_scale', 6),
    size_level: numberOf(args, 'size_level', 1024),
    seed: typeof seed === 'number' ? seed : null,
  };
  const image = await engine.edit(
    {
      ...facts,
      prompt: fields.prompt,
      seed: fields.seed ?? Math.floor(Math.random() * 2 ** 32),
      steps: fields.num_steps,
    },
    await readFile(path),
    { sizeLevel: fields.size_level },
  );
  await writeFile(outputPath, image);
  const seconds = (performance.now() - startedMs) / 1000;
  print(`Done in ${seconds.toFixed(1)}s.`);
  const { model_location, gpu_memory_allocated_gb } = engine.status();
  return {
    status: 'success',
    message: 'Image edited successfully',
    output_path: outputPath,
    processing_time: Math.round(seconds * 100) / 100,
    metadata: { ...fields, gpu_location: model_location, gpu_memory_gb: gpu_memory_allocated_gb },
  };
}

async function editBatch(args: Arguments, context: Context): Promise<object> {
  const paths = listOf(args['image_paths']);
  const prompts = listOf(args['prompts']);
  const results: { input: string; result: object }[] = [];
  for (const [index, path] of paths.entries()) {
    context.print(`Processing image ${index + 1}/${paths.length}...`);
    const output = args['output_dir'];
    const one = {
      ...args,
      image_path: path,
      prompt: prompts[index] ?? prompts[0],
      ...(typeof output === 'string' && { output_path: join(output, `output_${basename(path)}`) }),
    };
    results.push({ input: path, result: await editImage(one, context).catch(failure) });
  }
  const failures = results.filter(({ result }) => 'error' in result).length;
  return {
    status: failures === 0 ? 'success' : 'partial',
    message: `Processed ${paths.length} images: ${paths.length - failures} succeeded, ${failures} failed`,
    results,
    summary: { total: paths.length, successes: paths.length - failures, failures },
  };
}

function textOf(args: Arguments, name: string): string {
  const value = args[name];
  if (typeof value === 'string') return value;
  throw new Error(`${name} is missing`);
}

function numberOf(args: Arguments, name: string, otherwise: number): number {
  const value = args[name];
  return typeof value === 'number' ? value : otherwise;
}

function listOf(value: unknown): string[] {
  return (Array.isArray(value) ? value : [value]).filter((one) => typeof one === 'string');
}
