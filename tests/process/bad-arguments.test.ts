import fc from 'fast-check';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Tool } from '../../bridge/mcp/tool.ts';
import { parseArguments } from '../../bridge/mcp/tool.ts';
import { TOOLS } from '../../bridge/mcp/tools.ts';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { TestFleet, vllm } from '../helpers/fleet.ts';

/** The same calls in every run; another seed finds others. */
const SEED = Number(process.env['GANTRY_BAD_SEED'] ?? 20_261_121);
const CALLS = 1_000;
const AT_ONCE = 8;

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const NO_ID = '9b2f0c1e-0000-4000-8000-000000000000';
const OUTSIDE = [
  '/etc/passwd',
  '/proc/self/mem',
  `${'../'.repeat(6)}etc/gantry`,
  '/tmp/gantry-evil',
  '~/.ssh/id_rsa',
  '//x/y',
];

let fleet: TestFleet;
let bridge: BridgeClient;

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
  bridge = await fleet.bridge({ roots: [join(fleet.directory, 'out')] });
});
afterAll(() => fleet[Symbol.asyncDispose]());

type Args = Record<string, unknown>;
type BadCall = { tool: Tool; args: Args };

/** Arguments that the schema takes; what is bad is put on top of them. */
const GOOD: Record<string, Args> = {
  generate_image: { prompt: 'a fox', width: 256, height: 256 },
  edit_image: { image_path: 'x.png', prompt: 'a hat' },
  batch_generate: { prompts: ['a fox', 'a crow'] },
  batch_edit_images: { image_paths: ['x.png'], prompts: ['a hat'] },
  get_job: { id: NO_ID },
  cancel_batch: { batch_id: NO_ID },
  load_model: { model: 'klein' },
  get_image: { id: NO_ID },
  save_style: { name: 'night', body: 'dark' },
  delete_style: { name: 'night' },
};

/** What any tool may get from a confused model. */
const garbage: fc.Arbitrary<unknown> = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.constantFrom('', ' ', '\0', '\u001b[2J', '{"a":1}', '[object Object]', '__proto__', 'x'.repeat(20_000)),
  fc.double(),
  fc.constantFrom(-1, 0, 1e308, 2 ** 53, -(2 ** 31), 0.1),
  fc.boolean(),
  fc.array(fc.anything({ maxDepth: 1 }), { maxLength: 5 }),
  fc.dictionary(fc.string({ maxLength: 10 }), fc.anything({ maxDepth: 1 }), { maxKeys: 4 }),
);

/** Refused by the schema: garbage in place of some arguments, missing ones, and names that no tool knows. */
const malformed: fc.Arbitrary<BadCall> = fc
  .constantFrom(...TOOLS)
  .chain((tool) => {
    const names = [...Object.keys(tool.input.shape), 'verbose', 'negativePrompt', 'constructor', '__proto__x'];
    const changed = fc.dictionary(fc.constantFrom(...names), garbage, { minKeys: 1, maxKeys: 4 });
    return fc.tuple(changed, fc.boolean()).map(([args, isOnTop]) => ({
      tool,
      args: asJson(isOnTop ? { ...GOOD[tool.name], ...args } : args),
    }));
  })
  .filter(({ tool, args }) => !isTaken(tool, args));

/** What the schema takes and the tool must refuse. */
const path = fc.constantFrom(...OUTSIDE);
const odd = fc.string({ minLength: 1, maxLength: 30 }).map((text) => `no-${text}`);
const hopeless: fc.Arbitrary<BadCall> = fc.oneof(
  call('generate_image', { prompt: fc.constant('x'), output_dir: path }),
  call('generate_image', { prompt: fc.constant('x'), model: odd }),
  call('generate_image', { prompt: fc.constant('x'), host: odd }),
  call('generate_image', { prompt: fc.constant('x'), aspect_ratio: fc.constantFrom('17:9', '1:0', 'wide') }),
  call('generate_image', {
    prompt: fc.constant('x'),
    width: fc.integer({ min: 1, max: 9_000 }).map((n) => n * 16 + 1),
  }),
  call('generate_image', { prompt: fc.constant('x'), width: fc.constant(8_192), height: fc.constant(8_192) }),
  call('batch_generate', { prompts_file: path }),
  call('batch_generate', { prompts: fc.constant(['a', 'b']), seeds: fc.constantFrom([1], [1, 2, 3]) }),
  call('batch_generate', { prompts: fc.constant(['a']), output_dir: path }),
  call('edit_image', { prompt: fc.constant('x'), image_path: path }),
  call('edit_image', { prompt: fc.constant('x'), image_path: fc.uuid({ version: 4 }) }),
  call('batch_edit_images', {
    prompts: fc.constant(['x']),
    image_paths: fc.array(path, { minLength: 1, maxLength: 4 }),
  }),
  call('get_job', { id: fc.oneof(path, fc.uuid(), odd) }),
  call('cancel_batch', { batch_id: fc.oneof(path, fc.uuid(), odd) }),
  call('load_model', { model: odd }),
  call('get_image', { path }),
  call('get_image', { id: fc.oneof(path, fc.uuid({ version: 4 }), odd) }),
  call('get_image', { id: fc.uuid({ version: 4 }), crop: fc.array(fc.double(), { maxLength: 6 }) }),
  call('save_style', { name: path, body: fc.constant('x') }),
  call('delete_style', { name: fc.oneof(path, odd) }),
  call('get_model_info', { model: odd }),
  call('list_presets', { model: odd }),
  call('estimate_generation', { width: fc.constantFrom(1, 17, 99_999) }),
  call('gpu_status', { host: odd }),
);

test(`${CALLS} bad calls (seed ${SEED}) are refused in words, and change nothing`, { timeout: 300_000 }, async () => {
  const before = await filesBelow(fleet.directory);
  const calls = fc.sample(fc.oneof({ arbitrary: malformed, weight: 3 }, { arbitrary: hopeless, weight: 2 }), {
    seed: SEED,
    numRuns: CALLS,
  });
  expect(new Set(calls.map(({ tool }) => tool.name)), 'every tool is called').toEqual(
    new Set(TOOLS.map(({ name }) => name)),
  );
  const { pid } = bridge.transport;
  const waiting = calls.values();
  await Promise.all(Array.from({ length: AT_ONCE }, () => work(waiting)));

  expect(bridge.transport.pid, 'the same process is still there').toBe(pid);
  expect((await bridge.call('list_hosts')).isError).toBe(false);
  expect(await filesBelow(fleet.directory)).toEqual(before);
  expect(await fleet.outputFiles()).toEqual([]);
  await expect(stat('/tmp/gantry-evil')).rejects.toThrow('ENOENT');
});

async function work(calls: Iterator<BadCall>): Promise<void> {
  for (let next = calls.next(); next.done !== true; next = calls.next()) {
    const { tool, args } = next.value;
    const shown = `${tool.name} ${JSON.stringify(args).slice(0, 300)}`;
    const answer = await bridge.call(tool.name, args);
    expect(answer.isError, `${shown} → ${answer.text.slice(0, 300)}`).toBe(true);
    expect(answer.text, shown).toMatch(/^[A-Z_]+: \S/);
    expect(answer.text, shown).not.toMatch(/^INTERNAL|\n\s+at |node:internal|\.[cm]?[jt]s:\d/);
    expect(answer.text.length, shown).toBeLessThan(5_000);
  }
}

function call(name: string, args: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<BadCall> {
  const tool = TOOLS.find((each) => each.name === name);
  if (tool === undefined) throw new Error(`no tool ${name}`);
  return fc.record(args).map((values) => ({ tool, args: values }));
}

/** As it arrives: NaN has become null, undefined is gone. */
function asJson(args: Args): Args {
  return JSON.parse(
    JSON.stringify(args, (_, value: unknown) => (typeof value === 'bigint' ? Number(value) : value)),
  ) as Args; // an object stays one
}

/** By the schema alone; null counts as left out, and one text as a list of one. */
function isTaken(tool: Tool, args: Args): boolean {
  try {
    parseArguments(tool.input, args);
    return true;
  } catch {
    return false;
  }
}

/** All but what the programs keep for themselves. */
async function filesBelow(directory: string): Promise<string[]> {
  const all = await readdir(directory, { recursive: true });
  return all.filter((name) => !name.startsWith('a/') && !name.includes('.local')).sort();
}
