// Writes the tables of the documents that come from code, and the JSON Schemas of both configuration files.
// `--check` writes nothing and fails when a document differs from the code.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { format, resolveConfig } from 'prettier';
import type { z } from 'zod';
import { AgentFile } from '../agent/config-schema.ts';
import { agentFileSchema } from '../agent/config.ts';
import { TRANSITIONS as MODEL_TRANSITIONS } from '../agent/model/model-state.ts';
import { BridgeFile, configSchema } from '../bridge/config.ts';
import { JOB_TRANSITIONS } from '../bridge/fleet/job-state.ts';
import { TOOLS } from '../bridge/mcp/tools.ts';
import { ERROR_CODES } from '../shared/errors.ts';
import { PROFILES } from '../shared/profiles.ts';
import { LIMITS } from '../shared/limits.ts';
import { CLOSE_CODES, HOST_REQUESTS, NOTIFICATIONS, REQUESTS } from '../shared/protocol.ts';
import { clientNames, clientSections } from './lib/client-pages.ts';
import { configRows } from './lib/config-rows.ts';
import { toolChapter } from './lib/tool-docs.ts';
import { NAMED_TYPES, typeText } from './lib/type-text.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const MEND = 'npx tsx scripts/sync-docs.ts';

/** Document → name of a block in it → the block's text. */
const BLOCKS: Record<string, Record<string, () => string>> = {
  'docs/PROTOCOL.md': {
    requests: () => requests(REQUESTS),
    'host-requests': () => requests(HOST_REQUESTS),
    notifications: () =>
      Object.entries(NOTIFICATIONS)
        .map(([method, { meaning, params }]) => [`### \`${method}\``, meaning, codeBlock({ params })].join('\n\n'))
        .join('\n\n'),
    types: () =>
      [
        '```ts',
        ...[...NAMED_TYPES].map(([schema, name]) => `type ${name} = ${typeText(schema, 'whole')};`),
        '```',
      ].join('\n'),
    'close-codes': () =>
      table(
        ['code', 'name', 'meaning'],
        Object.entries(CLOSE_CODES).map(([name, { code, meaning }]) => [String(code), `\`${name}\``, meaning]),
      ),
    limits: () =>
      table(
        ['limit', 'value', 'meaning'],
        Object.entries(LIMITS).map(([name, { value, meaning }]) => [`\`${name}\``, amount(name, value), meaning]),
      ),
    errors: () =>
      table(
        ['code', 'tried again', 'meaning'],
        Object.entries(ERROR_CODES).map(([code, { retryable, meaning }]) => [
          `\`${code}\``,
          retryable ? 'yes' : 'no',
          meaning,
        ]),
      ),
  },
  'ARCHITECTURE.md': {
    'model-transitions': () => transitions(MODEL_TRANSITIONS),
    'job-transitions': () => transitions(JOB_TRANSITIONS),
  },
  'docs/clients.md': { clients: clientSections },
  'README.md': {
    'client-names': clientNames,
    tools: () =>
      table(
        ['tool', 'parameters', 'what it does'],
        TOOLS.map(({ name, input, description }) => [`\`${name}\``, parameters(input), firstSentence(description)]),
      ),
  },
  'docs/tools.md': { tools: () => TOOLS.map(toolChapter).join('\n\n') },
  'docs/configuration.md': {
    'agent-keys': () => table(['key', 'value', 'default', 'meaning'], configRows(AgentFile)),
    'bridge-keys': () => table(['key', 'value', 'default', 'meaning'], configRows(BridgeFile)),
  },
  'docs/models.md': {
    profiles: () =>
      table(
        ['model', 'does', 'steps', 'guidance', 'negative prompt', 'default size', 'multiple of', 'VRAM loaded / peak'],
        PROFILES.map((profile) => [
          profile.model,
          profile.capabilities.join(', '),
          profile.maxSteps < 200 ? `${profile.steps} (at most ${profile.maxSteps})` : String(profile.steps),
          `\`${profile.guidance.field}\` ${profile.guidance.value}`,
          profile.supportsNegativePrompt ? 'yes' : 'no',
          profile.hasSizeLevel ? 'size_level 1024' : `${profile.width}x${profile.height}`,
          String(profile.multiple),
          `${gibText(profile.weightsMiB)} / ${gibText(profile.peakMiB)}`,
        ]),
      ),
    sources: () =>
      PROFILES.map(({ model, sources }) =>
        [`### ${model}`, ...Object.entries(sources).map(([field, source]) => `- ${field}: ${source}`)].join('\n'),
      ).join('\n\n'),
  },
};

const SCHEMAS: Record<string, () => unknown> = {
  'docs/agent.schema.json': agentFileSchema,
  'docs/bridge.schema.json': configSchema,
};

const BYTE_UNITS = [
  ['GiB', 1024 ** 3],
  ['MiB', 1024 ** 2],
  ['KiB', 1024],
] as const;
const TIME_UNITS = [
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1_000],
] as const;

/** Parameters of every tool that makes images; the README explains them once, under this name. */
const COMMON = ['format', 'model', 'host', 'preview', 'wait_seconds'];

const isCheck = process.argv.includes('--check');
const stale: string[] = [];
for (const [document, blocks] of Object.entries(BLOCKS)) {
  const text = await readFile(join(ROOT, document), 'utf8');
  const filled = Object.entries(blocks).reduce((sum, [name, block]) => fill(sum, { document, name, block }), text);
  await settle(document, await pretty(document, filled));
}
for (const [document, schema] of Object.entries(SCHEMAS)) {
  await settle(document, `${JSON.stringify(schema(), null, 2)}\n`);
}
if (stale.length > 0) {
  process.stderr.write(`These documents differ from the code: ${stale.join(', ')}. To mend them, run: ${MEND}\n`);
  process.exitCode = 1;
}

/** Writes a document that changed, or notes it. */
async function settle(document: string, wanted: string): Promise<void> {
  const path = join(ROOT, document);
  const present = await readFile(path, 'utf8').catch(() => undefined); // a schema that was never written
  if (present === wanted) return;
  if (isCheck) stale.push(document);
  else {
    await writeFile(path, wanted);
    process.stdout.write(`wrote ${document}\n`);
  }
}

function fill(
  text: string,
  { document, name, block }: { document: string; name: string; block: () => string },
): string {
  const begin = `<!-- generated:${name} -->`;
  const end = '<!-- /generated -->';
  const from = text.indexOf(begin);
  const to = text.indexOf(end, from);
  if (from < 0 || to < 0) throw new Error(`${document} has no block ${begin} ... ${end}`);
  return `${text.slice(0, from + begin.length)}\n\n${block()}\n\n${text.slice(to)}`;
}

async function pretty(document: string, text: string): Promise<string> {
  const filepath = join(ROOT, document);
  return format(text, { ...(await resolveConfig(filepath)), filepath });
}

function codeBlock(shapes: Record<string, z.ZodType>): string {
  const lines = Object.entries(shapes).map(([name, schema]) => `${name}: ${typeText(schema, 'whole')};`);
  return ['```ts', ...lines, '```'].join('\n');
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

type Requests = Readonly<Record<string, { role: string; meaning: string; params: z.ZodType; result: z.ZodType }>>;

function requests(table: Requests): string {
  return Object.entries(table)
    .map(([method, { role, meaning, params, result }]) =>
      [`### \`${method}\``, `${meaning} Role: ${role}.`, codeBlock({ params, result })].join('\n\n'),
    )
    .join('\n\n');
}

function transitions(all: Record<string, readonly string[]>): string {
  return table(
    ['from', 'to'],
    Object.entries(all).map(([from, targets]) => [from, targets.join(', ')]),
  );
}

/** Required names first, the others in brackets. */
function parameters(input: z.ZodObject): string {
  const names = Object.entries(input.shape).map(([name, schema]) => ({
    name,
    isOptional: (schema as z.ZodType).safeParse(undefined).success, // a ZodObject's shape is untyped here
  }));
  const required = names.filter(({ isOptional }) => !isOptional).map(({ name }) => name);
  const hasCommon = COMMON.every((name) => names.some((each) => each.name === name && each.isOptional));
  const optional = [
    ...names
      .filter(({ name, isOptional }) => isOptional && !(hasCommon && COMMON.includes(name)))
      .map(({ name }) => name),
    ...(hasCommon ? ['_common_'] : []),
  ];
  return [...required, ...(optional.length > 0 ? [`[${optional.join(', ')}]`] : [])].join(', ') || 'none';
}

function firstSentence(text: string): string {
  return /^.*?[.](?=\s|$)/s.exec(text)?.[0].replaceAll('\n', ' ') ?? text;
}

function amount(name: string, value: number): string {
  const units = name.endsWith('Bytes') ? BYTE_UNITS : name.endsWith('Ms') ? TIME_UNITS : [];
  const [unit, size] = units.find((each) => value >= each[1]) ?? ['', 1];
  return `${value / size} ${unit}`.trim();
}

function gibText(mib: number | null): string {
  return mib === null ? '?' : `${(mib / 1024).toFixed(1)} GiB`;
}
